"""A lent GPU comes back to its engine, however many of others' pods wait for one."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from itertools import chain

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from dev.simulate.cluster import Cluster
from sluice_api.claim import SlotRef
from sluice_api.inferenceengine import InferenceEngine, SlotState, SlotStatus
from sluice_api.meta import PLACEHOLDER_GATE, PLACEHOLDER_LABEL, SLOT_LABEL
from sluice_operator.observe.views import Key, PodView
from sluice_operator.observe.world import engine_key
from sluice_operator.plan.engine.decide import plan_engine
from sluice_operator.plan.engine.placeholders import Placeholders
from tests.unit.plan.worlds import GPU, NOW, YIELDS, WorldBuilder

LENDS = {"policy": "ScaleDown", "minReplicas": 1}
RECLAIMS = {**LENDS, "reclaim": "OnDemand", "coolDownSeconds": 0}


def trainers(cluster: Cluster) -> list[PodView]:
    pods = cluster.world.pods.values()
    return [pod for pod in pods if pod.labels.get("sluice.dev/stage") == "Train" and pod.node and not pod.ended]


def strangers(cluster: Cluster) -> list[PodView]:
    return [pod for pod in cluster.world.pods.values() if pod.key.namespace == "others"]


def reconcile_jobs(cluster: Cluster) -> None:
    for job in list(cluster.world.jobs.values()):
        cluster.reconcile_job(job)


def reconcile_engines(cluster: Cluster) -> None:
    for engine in list(cluster.world.engines.values()):
        cluster.reconcile_engine(engine)


def ends(code: int, reason: str) -> Callable[[Cluster], None]:
    def end(cluster: Cluster) -> None:
        for pod in trainers(cluster):
            cluster.end_training(pod, code, reason)

    return end


def suspends(wanted: bool) -> Callable[[Cluster], None]:
    def suspend(cluster: Cluster) -> None:
        for job in list(cluster.world.jobs.values()):
            cluster.respec(job, suspend=wanted)

    return suspend


def delete_one(cluster: Cluster) -> None:
    for job in list(cluster.world.jobs.values())[:1]:
        cluster.delete_job(job)


def submits_urgent(policy: str) -> Callable[[Cluster], None]:
    def submit(cluster: Cluster) -> None:
        scheduling = {"policy": policy, "priority": 5, "interruption": YIELDS}
        cluster.builder.job(f"urgent-{len(cluster.world.jobs)}", scheduling=scheduling)

    return submit


def wants(replicas: int) -> Callable[[Cluster], None]:
    def resize(cluster: Cluster) -> None:
        for engine in list(cluster.world.engines.values()):
            cluster.respec(engine, replicas=replicas)

    return resize


STEPS: dict[str, Callable[[Cluster], None]] = {
    "pool": Cluster.reconcile_pool,
    "job": reconcile_jobs,
    "engine": reconcile_engines,
    "controllers": Cluster.controllers,
    "scheduler": Cluster.scheduler,
    "kubelet": Cluster.kubelet,
    "done": ends(0, "Done"),
    "requeued": ends(75, "Requeued"),
    "crashed": ends(70, "TrainerFailed"),
    "suspended": suspends(True),
    "resumed": suspends(False),
    "deleted": delete_one,
    "an urgent job that borrows": submits_urgent("Preempt"),
    "an urgent job that queues": submits_urgent("Queue"),
    "the engine wants more": wants(4),
    "the engine wants less": wants(3),
}
ROUND = ("pool", "job", "engine", "controllers", "scheduler", "kubelet")
"""What everybody does when nothing happens: it brings a job to its GPUs and a slot to its pod."""


def one_or_all(step: str) -> tuple[str, ...]:
    return ROUND if step == "everybody" else (step,)


@settings(max_examples=50)
@given(
    st.integers(0, 60), st.lists(st.sampled_from([*sorted(STEPS), *["everybody"] * 15]).map(one_or_all), max_size=60)
)
@example(
    begun=23,
    steps=[(step,) for step in ("an urgent job that borrows", "deleted")] + [ROUND, ("engine",), ROUND, ROUND],
)
def test_no_order_of_events_gives_a_lent_gpu_to_a_stranger(begun: int, steps: list[tuple[str, ...]]) -> None:
    """A stranger waits for any GPU at every moment, and the scheduler tries it first."""
    cluster = Cluster()
    cluster.builder.node(3)
    engine = cluster.builder.engine("chat", 3, preemption=RECLAIMS)
    for index in (0, 1, 2):
        cluster.builder.slot(engine, index, "n1")
    for name in ("a", "b"):
        cluster.builder.job(name, scheduling={"policy": "Preempt", "interruption": YIELDS})
    for step in [*(ROUND * 10)[:begun], *chain(*steps), *["the engine wants less", *ROUND, "done", "resumed"] * 30]:
        STEPS[step](cluster)
        cluster.strangers()
        assert not strangers(cluster), f"stolen at {step}"
    serving = cluster.world.engines[engine_key("team", "chat")].status.ready_replicas
    assert serving == 3
    assert not cluster.world.placeholders


CHAT_1 = SlotRef(namespace="team", engine="chat", index=1)


def returning(builder: WorldBuilder, *, pod: str | None, nominated: str = "n1", waits: float = 0) -> InferenceEngine:
    """An engine whose slot 1 starts again after a loan on n1; its pod is there, on a node, or not there yet."""
    engine = builder.engine("chat", 2, preemption=LENDS)
    builder.slot(engine, 0, "n1")
    if pod is None:
        builder.slot(engine, 1, size=0)
        slot = next(s for s in builder.world.slots.values() if s.index == 1)
        builder.put(replace(slot, size=1, resource_version=999))
    else:
        builder.slot(engine, 1, pod)
    placeholder(builder, nominated)
    said = SlotStatus(index=1, state=SlotState.STARTING, since=NOW - timedelta(seconds=waits))
    return engine.model_copy(update={"status": engine.status.model_copy(update={"slots": (said,)})})


def placeholder(builder: WorldBuilder, nominated: str) -> None:
    version, created = builder._next()
    builder.put(
        PodView(
            key=Key("Pod", "team", "chat-1-placeholder"),
            uid="placeholder",
            resource_version=version,
            created=created,
            labels={PLACEHOLDER_LABEL: "chat", SLOT_LABEL: "1"},
            requests={GPU: 1},
            gates=(PLACEHOLDER_GATE,),
            nominated_node=nominated,
        )
    )


def told(decision: Placeholders) -> dict[str, list[str]]:
    """A decision by the names of what it is about."""
    found = {
        "nominate": [f"{pod.key.name} to {node}" for pod, node in decision.nominate],
        "make": [f"{index} on {node}" for index, node in decision.make],
        "remove": [pod.key.name for pod in decision.remove],
    }
    return {what: names for what, names in found.items() if names}


@pytest.mark.parametrize(
    ("rule", "pod", "waits", "expected"),
    [
        ("a slot whose pod is not made yet keeps its placeholder", None, 1, {}),
        ("one whose pod never comes lets it go", None, 6, {"remove": ["chat-1-placeholder"]}),
        ("a slot whose pod has no node yet keeps its placeholder", "", 1, {}),
        ("a pod that has a node needs no place", "n1", 1, {"remove": ["chat-1-placeholder"]}),
    ],
)
def test_placeholder_stays_until_the_returning_pod_has_a_node(
    rule: str, pod: str | None, waits: float, expected: dict[str, list[str]]
) -> None:
    builder = WorldBuilder()
    builder.node(2)
    engine = returning(builder, pod=pod, waits=waits)
    assert told(plan_engine(builder.world, engine, NOW).placeholders) == expected, rule


def test_placeholder_stays_while_the_old_pod_is_deleted() -> None:
    """A loan was called off while its slot stopped; the slot's next pod is not there yet."""
    builder = WorldBuilder()
    builder.node(2)
    engine = returning(builder, pod="n1", waits=1)
    pod = next(pod for pod in builder.world.pods.values() if pod.labels.get(SLOT_LABEL) == "1" and pod.node)
    builder.put(replace(pod, deleting=True, ready=False, resource_version=1000))
    assert told(plan_engine(builder.world, engine, NOW).placeholders) == {}


def lending(builder: WorldBuilder) -> InferenceEngine:
    """An engine whose slot 1 is lent to a job that trains on n1."""
    engine = builder.engine("chat", 2, preemption=LENDS)
    builder.slot(engine, 0, "n1")
    builder.slot(engine, 1, size=0)
    stage_job = builder.stage_job(builder.job("a"), claim=builder.claim("n1", CHAT_1))
    builder.trainer_pod(stage_job, "n1")
    return engine


@pytest.mark.parametrize(
    ("rule", "nominated", "expected"),
    [
        ("a lent slot has a placeholder where its GPUs are", None, {"make": ["1 on n1"]}),
        ("one is enough", "n1", {}),
        ("one that its maker could not nominate is nominated", "", {"nominate": ["chat-1-placeholder to n1"]}),
        ("one on another node is of an earlier loan", "n2", {"remove": ["chat-1-placeholder"]}),
    ],
)
def test_placeholder_is_made_and_nominated_during_the_loan(
    rule: str, nominated: str | None, expected: dict[str, list[str]]
) -> None:
    builder = WorldBuilder()
    builder.node(2)
    engine = lending(builder)
    if nominated is not None:
        placeholder(builder, nominated)
    assert told(plan_engine(builder.world, engine, NOW).placeholders) == expected, rule


def test_placeholder_goes_with_a_slot_that_is_not_wanted() -> None:
    builder = WorldBuilder()
    builder.node(2)
    engine = builder.engine("chat", 1, preemption=LENDS)
    builder.slot(engine, 0, "n1")
    placeholder(builder, "n1")
    assert told(plan_engine(builder.world, engine, NOW).placeholders) == {"remove": ["chat-1-placeholder"]}


def test_placeholder_is_made_before_the_slot_stops() -> None:
    builder = WorldBuilder()
    builder.node(2)
    engine = builder.engine("chat", 2, preemption=LENDS)
    for index in (0, 1):
        builder.slot(engine, index, "n1")
    builder.trainer_pod(builder.stage_job(builder.job("a"), claim=builder.claim("n1", CHAT_1)))
    decision = plan_engine(builder.world, engine, NOW)
    assert decision.slots[1].state is SlotState.DRAINING
    assert told(decision.placeholders) == {"make": ["1 on n1"]}
