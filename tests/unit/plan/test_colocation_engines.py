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
from tests.unit.plan.dra import SHARED, SLEEPS, DraWorldBuilder, chat, guests
from tests.unit.plan.worlds import NOW, WorldBuilder, allocated, planned_status

CHAT = engine_key("team", "chat")


def put(builder: WorldBuilder, view: Any, **changes: Any) -> None:
    """Something that has changed."""
    builder.version += 1
    builder.put(replace(view, resource_version=builder.version, **changes))


def with_utilization(builder: WorldBuilder, utilization: str) -> InferenceEngine:
    """The engine with another gpuMemoryUtilization: it takes effect when a replica restarts."""
    return builder.engine("chat", 1, serving={"gpuMemoryUtilization": utilization}, preemption=SLEEPS)


def with_a_guest(builder: DraWorldBuilder) -> None:
    builder.serving("chat", "n1")
    builder.visits(builder.job("g", scheduling=SHARED), "n1", chat(0))


def one_that_is_to_restart(builder: DraWorldBuilder) -> None:
    """Somebody has followed the remedy of ShareTooLarge, and its vLLM still has 90 %."""
    builder.serving("chat", "n1", leaves=10)
    with_utilization(builder, "0.60")


def one_that_restarts(builder: DraWorldBuilder) -> None:
    """The Deployment is written, and nobody has told its pod to go yet."""
    one_that_is_to_restart(builder)
    (slot,) = builder.world.slots.values()
    put(builder, slot, template=template_of(builder.world.engines[CHAT]))


def one_that_has_restarted(builder: DraWorldBuilder) -> None:
    one_that_restarts(builder)
    (pod,) = builder.world.engine_pods["team", "chat", 0].values()
    put(builder, pod, template=template_of(builder.world.engines[CHAT]))


def one_that_is_scaled_away(builder: DraWorldBuilder) -> None:
    builder.serving("chat", "n1")
    (slot,) = builder.world.slots.values()
    builder.store.remove(slot.key, slot.uid)


def one_that_goes(builder: DraWorldBuilder) -> None:
    builder.serving("chat", "n1")
    (pod,) = builder.world.engine_pods["team", "chat", 0].values()
    put(builder, pod, deleting=True)


def one_of_an_engine_that_goes(builder: DraWorldBuilder) -> None:
    engine = builder.serving("chat", "n1")
    builder.version += 1
    going = {"deletion_timestamp": NOW, "resource_version": str(builder.version)}
    builder.put(engine.model_copy(update={"metadata": engine.metadata.model_copy(update=going)}))


def one_whose_guest_still_saves_its_state(builder: DraWorldBuilder) -> None:
    with_a_guest(builder)
    (visit,) = builder.world.stage_jobs.values()
    put(builder, visit, deleting=True)


def one_that_sleeps_for_a_trainer_that_still_saves_its_state(builder: DraWorldBuilder) -> None:
    engine = builder.serving("chat", "n1")
    builder.trains(builder.job("b", suspend=True), "n1", chat(0), own=0)
    said = SlotStatus(index=0, state=SlotState.LENT, pod="chat-0-x", lent_to="team/b", since=NOW)
    builder.version += 1
    metadata = engine.metadata.model_copy(update={"resource_version": str(builder.version)})
    builder.put(engine.model_copy(update={"status": InferenceEngineStatus(slots=(said,)), "metadata": metadata}))


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
def test_guest_is_not_placed_beside_a_replica_that_changes(
    scene: Callable[[DraWorldBuilder], None], expected: str
) -> None:
    builder = DraWorldBuilder(1)
    scene(builder)
    builder.job("a", scheduling=SHARED)
    assert guests(builder) == expected


def test_waiting_for_share_message_names_a_restarting_replica() -> None:
    builder = DraWorldBuilder(1)
    one_that_is_to_restart(builder)
    builder.job("a", scheduling=SHARED)
    message = allocated(builder).waits[job_key("team", "a")].message
    assert "chat/0 takes none now: it wakes, restarts with a changed spec, or goes." in message


@pytest.mark.parametrize(
    ("rule", "spec", "restarts"),
    [
        ("it would take the guest's memory", {"serving": {"gpuMemoryUtilization": "0.90"}}, False),
        ("its claim would be replaced, which the guest keeps", {"resources": {"gpus": 2}}, False),
        ("the guest is in nobody's way", {"serving": {"gpuMemoryUtilization": "0.70", "dtype": "float16"}}, True),
    ],
)
def test_rollout_waits_for_guests_that_it_would_crowd(rule: str, spec: dict[str, Any], restarts: bool) -> None:
    builder = DraWorldBuilder(2)
    with_a_guest(builder)
    unchanged = {"serving": {"gpuMemoryUtilization": "0.70"}}
    engine = builder.engine("chat", 1, preemption=SLEEPS, **{**unchanged, **spec})
    decision = plan_engine(builder.world, engine, NOW)
    assert [plan.index for plan in decision.apply] == ([0] if restarts else []), rule
    waits = planned_status(builder.world, engine, NOW).conditions[0].reason == Reason.ROLLOUT_WAITS_FOR_RETURN
    assert waits is not restarts
    (visit,) = builder.world.stage_jobs.values()
    put(builder, visit, deleting=True)
    (pod,) = builder.world.pods_of[identity(visit)].values()
    put(builder, pod, ended=True)
    assert [plan.index for plan in plan_engine(builder.world, engine, NOW).apply] == [0]
