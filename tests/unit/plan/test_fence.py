"""One object at which something is raised is set aside, and everybody else's decision goes on."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from sluice_api.finetunejob import FineTuneJob, FineTuneJobStatus
from sluice_api.inferenceengine import InferenceEngine, InferenceEngineStatus
from sluice_api.reasons import Reason
from sluice_operator.facts import live_claims, outcomes
from sluice_operator.facts.nodes import find_pool
from sluice_operator.observe.fence import Fault, Fenced, each, fenced, looking_at
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import SetAside, World, engine_key, job_key, key_of, pool_key
from sluice_operator.plan import inventory, readiness
from sluice_operator.plan.job.decide import plan_job
from sluice_operator.plan.pool import allocate as allocation
from sluice_operator.plan.pool import lending, queue
from sluice_operator.plan.pool import refusals as access
from sluice_operator.plan.pool.allocate import Allocation, allocate
from sluice_operator.settings import Limits
from sluice_operator.status.aside import set_aside_status
from sluice_operator.status.pool import pool_usage
from tests.unit.plan.worlds import NOW, WorldBuilder, describe, planned_status

EVIL = job_key("evil", "x")


def decided(builder: WorldBuilder) -> Fenced[Allocation]:
    pool = find_pool(builder.world, "default")
    assert pool is not None

    def decide(world: World) -> Allocation:
        return allocate(world, pool, NOW)

    return fenced(builder.world, pool_key("default"), decide)


def poisoned(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, is_poison: Callable[[Any], bool]) -> None:
    """Have a function raise when one of its arguments is poison."""
    good = getattr(module, name)

    def bad(*args: Any, **kwargs: Any) -> Any:
        if any(is_poison(arg) for arg in args):
            raise ZeroDivisionError(f"{name} of poison")
        return good(*args, **kwargs)

    monkeypatch.setattr(module, name, bad)


def is_evil(thing: Any) -> bool:
    """Whether a thing is the job x of namespace evil."""
    return getattr(getattr(thing, "metadata", None), "full_name", "") == "evil/x"


def town_with_poison() -> WorldBuilder:
    builder = WorldBuilder()
    builder.node(2)
    builder.job("x", 1, "evil", scheduling={"policy": "Queue", "priority": 9})
    builder.job("victim", 1, scheduling={"policy": "Queue"})
    builder.job("other", 1, scheduling={"policy": "Queue"})
    return builder


@pytest.mark.parametrize(
    ("module", "name"),
    [(readiness, "all_outcomes"), (access, "sharing_refusal"), (queue, "place_in_queue"), (allocation, "place")],
)
def test_a_job_that_raises_is_set_aside(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
    builder = town_with_poison()
    poisoned(monkeypatch, module, name, is_evil)
    found = decided(builder)
    assert found.decision is not None
    assert describe(found.decision) == "other takes n1; victim takes n1"
    (aside,) = found.aside
    assert (aside.key, "test_fence.py" not in aside.why, "of poison" in aside.why) == (EVIL, True, True)


def test_all_jobs_that_raise_are_set_aside_in_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand poisonous jobs cost one more decision, not a thousand."""
    builder = WorldBuilder()
    builder.node(1)
    for number in range(50):
        builder.job(f"x{number}", 1, "evil", scheduling={"policy": "Queue"})
    builder.job("victim", 1, scheduling={"policy": "Queue"})
    poisoned(
        monkeypatch,
        readiness,
        "all_outcomes",
        lambda arg: isinstance(arg, FineTuneJob) and arg.metadata.namespace == "evil",
    )
    decisions = 0
    pool = find_pool(builder.world, "default")
    assert pool is not None

    def decide(world: World) -> Allocation:
        nonlocal decisions
        decisions += 1
        return allocate(world, pool, NOW)

    found = fenced(builder.world, pool_key("default"), decide)
    assert (decisions, len(found.aside)) == (2, 50)


def test_set_aside_job_stays_so_until_its_spec_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = town_with_poison()
    poisoned(monkeypatch, readiness, "all_outcomes", is_evil)
    builder.store.findings.leave_alone(SetAside(EVIL, "ZeroDivisionError", at=NOW))
    assert decided(builder).aside == ()
    job = builder.world.jobs[EVIL]
    told = job.model_copy(update={"status": job.status.model_copy(update={"summary": Reason.INTERNAL_ERROR})})
    for version, changed in ((998, told), (999, told.model_copy(update={"spec": respecified(told)}))):
        assert decided(builder).aside == (), version
        newer = changed.metadata.model_copy(update={"resource_version": str(version)})
        builder.put(changed.model_copy(update={"metadata": newer}))
    assert [aside.key for aside in decided(builder).aside] == [EVIL]


def respecified(job: FineTuneJob) -> Any:
    scheduling = job.spec.scheduling.model_copy(update={"priority": 3})
    return job.spec.model_copy(update={"scheduling": scheduling})


def test_pods_of_a_set_aside_job_keep_their_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = WorldBuilder()
    builder.node(2)
    evil = builder.job("x", 1, "evil")
    builder.trainer_pod(builder.stage_job(evil, claim=builder.claim("n1")), "n1")
    for name in ("victim", "other"):
        builder.job(name, 1, scheduling={"policy": "Queue"})
    poisoned(monkeypatch, live_claims, "is_live", is_evil)
    found = decided(builder)
    assert found.decision is not None
    assert describe(found.decision) == "other waits WaitingForGPUs; victim takes n1"
    assert [aside.key for aside in found.aside] == [EVIL]


def test_job_whose_past_claims_raise_is_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = town_with_poison()
    evil = builder.world.jobs[EVIL]
    builder.stage_job(evil, claim=builder.claim("n1"), finished="Failed")
    poisoned(monkeypatch, live_claims, "is_live", is_evil)
    found = decided(builder)
    assert found.decision is not None
    assert describe(found.decision) == "other takes n1; victim takes n1"
    assert [aside.key for aside in found.aside] == [EVIL]


@pytest.mark.parametrize(
    ("module", "name"),
    [(lending, "cooled_down"), (inventory, "may_lose"), (inventory, "wanted"), (inventory, "serves")],
)
def test_engine_that_raises_is_set_aside_and_lends_nothing(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    builder = WorldBuilder()
    builder.node(3)
    lends = {"policy": "ScaleDown", "minReplicas": 0, "lendTo": "Anywhere", "coolDownSeconds": 0}
    mine, good = builder.engine("mine", 1, "evil", preemption=lends), builder.engine("chat", 1, preemption=lends)
    poison = builder.slot(mine, 0, "n1")
    builder.slot(good, 0, "n1")
    builder.job("victim", 2)
    poisoned(monkeypatch, module, name, lambda arg: arg is mine or (name == "serves" and arg is poison))
    found = decided(builder)
    assert found.decision is not None
    assert describe(found.decision) == "victim takes chat/0"
    assert [aside.key for aside in found.aside] == [engine_key("evil", "mine")]


def test_node_that_raises_is_set_aside_and_its_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = WorldBuilder()
    builder.node(4)
    builder.node(1)
    trains = builder.job("trains", 1)
    builder.trainer_pod(builder.stage_job(trains, claim=builder.claim("n1")), "n1")
    builder.job("victim", 1, scheduling={"policy": "Queue"})
    poisoned(monkeypatch, inventory, "node_unusable", lambda arg: getattr(arg, "key", None) == Key("Node", "", "n1"))
    found = decided(builder)
    assert found.decision is not None
    assert describe(found.decision) == "victim takes n2"
    assert [aside.key.name for aside in found.aside] == ["n1"]
    builder.store.findings.leave_alone(found.aside[0])
    mine = fenced(builder.world, key_of(trains), lambda world: plan_job(world, trains, NOW, Limits()))
    assert mine.decision is not None
    assert mine.decision.delete == ()


def test_job_that_raises_stops_no_engine_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = WorldBuilder()
    builder.node(2)
    terms = {"policy": "ScaleDown", "minReplicas": 0, "lendTo": "Anywhere"}
    engine = builder.engine("chat", 1, preemption=terms)
    builder.slot(engine, 0, "n1")
    evil = builder.job("x", 1, "evil")
    builder.stage_job(evil, claim=builder.claim("n2"))
    poisoned(monkeypatch, live_claims, "is_live", is_evil)
    poisoned(monkeypatch, live_claims, "believed", is_evil)
    found = fenced(builder.world, key_of(engine), lambda world: planned_status(world, engine, NOW))
    assert found.decision is not None
    assert found.decision.ready == "1/1"


def test_job_that_raises_in_its_own_decision_has_internal_error(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = town_with_poison()
    job = builder.world.jobs[EVIL]
    poisoned(monkeypatch, outcomes, "ended", is_evil)
    builder.stage_job(job, finished="Failed", finished_at=NOW)
    found = fenced(builder.world, EVIL, lambda world: plan_job(world, job, NOW, Limits()))
    assert found.decision is None
    (aside,) = found.aside
    said = set_aside_status(job, aside, NOW)
    assert isinstance(said, FineTuneJobStatus)
    assert said.summary == Reason.INTERNAL_ERROR
    told = {known.type: (known.status, known.reason) for known in said.conditions}
    assert told == {"Prepared": ("False", "InternalError"), "Succeeded": ("Unknown", "InternalError")}
    assert "ZeroDivisionError: ended of poison" in said.conditions[0].message
    later = set_aside_status(job.model_copy(update={"status": said}), aside, NOW + timedelta(minutes=5))
    assert later == said


def test_set_aside_engine_keeps_the_rest_of_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = WorldBuilder()
    engine = builder.engine("chat", 1)
    told = planned_status(builder.world, engine, NOW)
    known: InferenceEngine = engine.model_copy(update={"status": told})
    said = set_aside_status(known, SetAside(key_of(engine), "ZeroDivisionError"), NOW)
    assert isinstance(said, InferenceEngineStatus)
    assert (said.slots, said.ready) == (told.slots, told.ready)
    assert next((c.type, c.status, c.reason) for c in said.conditions) == ("Ready", "Unknown", "InternalError")
    assert said.conditions[1] == told.conditions[1]


def test_fault_names_the_innermost_object() -> None:
    with pytest.raises(Fault) as fault, looking_at(EVIL):
        each([1, 0, 2, 0], lambda number: Key("Node", "", f"n{number}"), lambda number: 1 / number)
    assert [aside.key.name for aside in fault.value.aside] == ["n0", "n0"]


def test_fault_of_an_unknown_object_sets_the_pool_aside_too() -> None:
    builder = WorldBuilder()
    builder.node(1)

    def decide(_world: World) -> int:
        raise Fault(SetAside(pool_key("other"), "blamed though it is not in the World"))

    found = fenced(builder.world, pool_key("default"), decide)
    assert found.decision is None
    assert {aside.key.name for aside in found.aside} == {"other", "default"}


def test_pool_usage_leaves_out_set_aside_jobs() -> None:
    builder = town_with_poison()
    pool = find_pool(builder.world, "default")
    assert pool is not None
    builder.store.findings.leave_alone(SetAside(EVIL, "", at=NOW))
    found = fenced(builder.world, key_of(pool), lambda world: pool_usage(world, pool))
    assert found.decision is not None
    assert found.decision.free == 2
