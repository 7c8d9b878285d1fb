"""The ResourceClaims of an engine's slots: there before the slot starts, replaced when it starts anew."""

from collections.abc import Callable

import pytest

from sluice_api.claim import SlotRef
from sluice_api.inferenceengine import InferenceEngine
from sluice_operator.plan.engine.decide import plan_engine
from tests.unit.plan.dra import SLEEPS, DraWorldBuilder
from tests.unit.plan.worlds import NOW, WorldBuilder, planned_status


def decided(builder: WorldBuilder, engine: InferenceEngine) -> str:
    devices = plan_engine(builder.world, engine, NOW).devices
    made = [f"makes {index}" for index in devices.make]
    return ", ".join([*made, *(f"removes {claim.key.name}" for claim in devices.remove)])


def new(builder: DraWorldBuilder) -> InferenceEngine:
    return builder.engine("chat", 2)


def without_gpus(builder: DraWorldBuilder) -> InferenceEngine:
    return builder.engine("chat", 3)


def running(builder: DraWorldBuilder) -> InferenceEngine:
    return builder.serving("chat", "n1", "n1")


def removed(builder: DraWorldBuilder) -> InferenceEngine:
    engine = builder.serving("chat", "n1", "n1")
    return _changed(builder, engine, replicas=1)


def larger(builder: DraWorldBuilder) -> InferenceEngine:
    """Its spec asks for two GPUs now. The turn of a slot comes with its restart; the other one keeps what it has."""
    return _changed(builder, builder.serving("chat", "n1", "n1"), resources={"gpus": 2})


def going(builder: DraWorldBuilder) -> InferenceEngine:
    """Somebody has deleted what a slot uses: it stays until the pod has ended."""
    engine = builder.engine("chat", 1)
    WorldBuilder.slot(builder, engine, 0, "n1")
    builder.slot_has(engine, 0, "n1", deleting=True)
    return engine


def lent(builder: DraWorldBuilder) -> InferenceEngine:
    engine = builder.serving("chat", "n1", preemption=SLEEPS)
    builder.trains(builder.job("a"), "n1", SlotRef(namespace="team", engine="chat", index=0), own=0)
    return engine


def strangers(builder: DraWorldBuilder) -> InferenceEngine:
    builder.has("chat-7-gpus", "n1", 1, labels={"sluice.dev/engine": "chat", "sluice.dev/slot": "7"})
    return builder.engine("chat", 0)


def _changed(builder: DraWorldBuilder, engine: InferenceEngine, **spec: object) -> InferenceEngine:
    """The engine with another spec."""
    body = engine.model_dump(mode="json", by_alias=True, exclude_none=True)
    builder.version += 1
    body["metadata"]["resourceVersion"] = str(builder.version)
    changed = InferenceEngine.model_validate({**body, "spec": {**body["spec"], **spec}})
    builder.put(changed)
    return changed


@pytest.mark.parametrize(
    ("scene", "expected"),
    [
        (new, "makes 0, makes 1"),
        (without_gpus, "makes 0, makes 1"),
        (running, ""),
        (removed, "removes chat-1-gpus"),
        (larger, "removes chat-0-gpus"),
        (going, ""),
        (lent, ""),
        (strangers, ""),
    ],
)
def test_each_slot_has_its_resource_claim(scene: Callable[[DraWorldBuilder], InferenceEngine], expected: str) -> None:
    builder = DraWorldBuilder(2)
    assert decided(builder, scene(builder)) == expected


def test_resource_claim_goes_in_a_pool_of_a_device_plugin() -> None:
    builder = DraWorldBuilder(2, sharing={"mode": "None"})
    assert decided(builder, builder.serving("chat", "n1")) == "removes chat-0-gpus"


def test_lent_slot_with_a_resource_claim_has_no_placeholder() -> None:
    """Its ResourceClaim has the devices all the while."""
    builder = DraWorldBuilder(2)
    engine = lent(builder)
    assert plan_engine(builder.world, engine, NOW).placeholders.make == ()
    assert planned_status(builder.world, engine, NOW).lent == 1


def test_resource_claim_of_another_device_class_is_replaced() -> None:
    builder = DraWorldBuilder(2)
    engine = builder.engine("chat", 1)
    builder.slot(engine, 0, size=0)
    builder.slot_has(engine, 0, "", asks=("gpu.old.example.com", 1))
    assert decided(builder, engine) == "removes chat-0-gpus"
