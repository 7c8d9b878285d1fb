"""Replicas that restart, sleep or go: none has a guest who would find its memory taken."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sluice_api.inferenceengine import InferenceEngine, InferenceEngineStatus, SlotState, SlotStatus
from sluice_api.reasons import Reason
from sluice_operator.facts.slots import template_of
from sluice_operator.observe.world import engine_key, identity, job_key
from sluice_operator.plan.engine.decide import plan_engine
from tests.unit.plan.dra import SHARED, SLEEPS, DraTown, chat, guests
from tests.unit.plan.worlds import NOW, Town, allocated, planned_status

CHAT = engine_key("team", "chat")


def put(town: Town, view: Any, **changes: Any) -> None:
    """Something that has changed."""
    town.version += 1
    town.put(replace(view, resource_version=town.version, **changes))


def with_utilization(town: Town, utilization: str) -> InferenceEngine:
    """The engine with another gpuMemoryUtilization: it takes effect when a replica restarts."""
    return town.engine("chat", 1, serving={"gpuMemoryUtilization": utilization}, preemption=SLEEPS)


def with_a_guest(town: DraTown) -> None:
    town.serving("chat", "n1")
    town.visits(town.job("g", scheduling=SHARED), "n1", chat(0))


def one_that_is_to_restart(town: DraTown) -> None:
    """Somebody has followed the remedy of ShareTooLarge, and its vLLM still has 90 %."""
    town.serving("chat", "n1", leaves=10)
    with_utilization(town, "0.60")


def one_that_restarts(town: DraTown) -> None:
    """The Deployment is written, and nobody has told its pod to go yet."""
    one_that_is_to_restart(town)
    (slot,) = town.world.slots.values()
    put(town, slot, template=template_of(town.world.engines[CHAT]))


def one_that_has_restarted(town: DraTown) -> None:
    one_that_restarts(town)
    (pod,) = town.world.engine_pods["team", "chat", 0].values()
    put(town, pod, template=template_of(town.world.engines[CHAT]))


def one_that_is_scaled_away(town: DraTown) -> None:
    town.serving("chat", "n1")
    (slot,) = town.world.slots.values()
    town.store.remove(slot.key, slot.uid)


def one_that_goes(town: DraTown) -> None:
    town.serving("chat", "n1")
    (pod,) = town.world.engine_pods["team", "chat", 0].values()
    put(town, pod, deleting=True)


def one_of_an_engine_that_goes(town: DraTown) -> None:
    engine = town.serving("chat", "n1")
    town.version += 1
    going = {"deletion_timestamp": NOW, "resource_version": str(town.version)}
    town.put(engine.model_copy(update={"metadata": engine.metadata.model_copy(update=going)}))


def one_whose_guest_still_saves_its_state(town: DraTown) -> None:
    with_a_guest(town)
    (visit,) = town.world.stage_jobs.values()
    put(town, visit, deleting=True)


def one_that_sleeps_for_a_trainer_that_still_saves_its_state(town: DraTown) -> None:
    engine = town.serving("chat", "n1")
    town.trains(town.job("b", suspend=True), "n1", chat(0), own=0)
    said = SlotStatus(index=0, state=SlotState.LENT, pod="chat-0-x", lent_to="team/b", since=NOW)
    town.version += 1
    metadata = engine.metadata.model_copy(update={"resource_version": str(town.version)})
    town.put(engine.model_copy(update={"status": InferenceEngineStatus(slots=(said,)), "metadata": metadata}))


@pytest.mark.parametrize(
    ("scene", "expected"),
    [
        (one_that_is_to_restart, "a waits WaitingForShare"),
        (one_that_restarts, "a waits WaitingForShare"),
        (one_that_has_restarted, "a beside chat/0"),
        (one_that_is_scaled_away, "a waits WaitingForShare"),
        (one_that_goes, "a waits WaitingForShare"),
        (one_of_an_engine_that_goes, "a waits WaitingForShare"),
        (one_whose_guest_still_saves_its_state, "a waits WaitingForShare"),
        (one_that_sleeps_for_a_trainer_that_still_saves_its_state, "a waits WaitingForShare"),
    ],
)
def test_a_guest_is_let_in_only_beside_a_replica_that_stays_as_it_is(
    scene: Callable[[DraTown], None], expected: str
) -> None:
    town = DraTown(1)
    scene(town)
    town.job("a", scheduling=SHARED)
    assert guests(town) == expected


def test_who_waits_is_told_that_a_replica_takes_no_guest_yet() -> None:
    town = DraTown(1)
    one_that_is_to_restart(town)
    town.job("a", scheduling=SHARED)
    message = allocated(town).waits[job_key("team", "a")].message
    assert "chat/0 takes none now: it wakes, restarts with a changed spec, or goes." in message


@pytest.mark.parametrize(
    ("rule", "spec", "restarts"),
    [
        ("it would take the guest's memory", {"serving": {"gpuMemoryUtilization": "0.90"}}, False),
        ("its claim would be replaced, which the guest keeps", {"resources": {"gpus": 2}}, False),
        ("the guest is in nobody's way", {"serving": {"gpuMemoryUtilization": "0.70", "dtype": "float16"}}, True),
    ],
)
def test_a_restart_that_leaves_the_guests_too_little_waits_for_their_end(
    rule: str, spec: dict[str, Any], restarts: bool
) -> None:
    town = DraTown(2)
    with_a_guest(town)
    unchanged = {"serving": {"gpuMemoryUtilization": "0.70"}}
    engine = town.engine("chat", 1, preemption=SLEEPS, **{**unchanged, **spec})
    decision = plan_engine(town.world, engine, NOW)
    assert [plan.index for plan in decision.apply] == ([0] if restarts else []), rule
    waits = planned_status(town.world, engine, NOW).conditions[0].reason == Reason.ROLLOUT_WAITS_FOR_RETURN
    assert waits is not restarts
    (visit,) = town.world.stage_jobs.values()
    put(town, visit, deleting=True)
    (pod,) = town.world.pods_of[identity(visit)].values()
    put(town, pod, ended=True)
    assert [plan.index for plan in plan_engine(town.world, engine, NOW).apply] == [0]
