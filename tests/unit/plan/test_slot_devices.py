"""The ResourceClaims of an engine's slots: there before the slot starts, replaced when it starts anew."""

from collections.abc import Callable

import pytest

from sluice_api.claim import SlotRef
from sluice_api.inferenceengine import InferenceEngine
from sluice_operator.plan.engine.decide import plan_engine
from tests.unit.plan.dra import SLEEPS, DraTown
from tests.unit.plan.worlds import NOW, Town, planned_status


def decided(town: Town, engine: InferenceEngine) -> str:
    devices = plan_engine(town.world, engine, NOW).devices
    made = [f"makes {index}" for index in devices.make]
    return ", ".join([*made, *(f"removes {claim.key.name}" for claim in devices.remove)])


def new(town: DraTown) -> InferenceEngine:
    return town.engine("chat", 2)


def without_gpus(town: DraTown) -> InferenceEngine:
    return town.engine("chat", 3)


def running(town: DraTown) -> InferenceEngine:
    return town.serving("chat", "n1", "n1")


def removed(town: DraTown) -> InferenceEngine:
    engine = town.serving("chat", "n1", "n1")
    return _changed(town, engine, replicas=1)


def larger(town: DraTown) -> InferenceEngine:
    """Its spec asks for two GPUs now. The turn of a slot comes with its restart; the other one keeps what it has."""
    return _changed(town, town.serving("chat", "n1", "n1"), resources={"gpus": 2})


def going(town: DraTown) -> InferenceEngine:
    """Somebody has deleted what a slot uses: it stays until the pod has ended."""
    engine = town.engine("chat", 1)
    Town.slot(town, engine, 0, "n1")
    town.slot_has(engine, 0, "n1", deleting=True)
    return engine


def lent(town: DraTown) -> InferenceEngine:
    engine = town.serving("chat", "n1", preemption=SLEEPS)
    town.trains(town.job("a"), "n1", SlotRef(namespace="team", engine="chat", index=0), own=0)
    return engine


def strangers(town: DraTown) -> InferenceEngine:
    town.has("chat-7-gpus", "n1", 1, labels={"sluice.dev/engine": "chat", "sluice.dev/slot": "7"})
    return town.engine("chat", 0)


def _changed(town: DraTown, engine: InferenceEngine, **spec: object) -> InferenceEngine:
    """The engine with another spec."""
    body = engine.model_dump(mode="json", by_alias=True, exclude_none=True)
    town.version += 1
    body["metadata"]["resourceVersion"] = str(town.version)
    changed = InferenceEngine.model_validate({**body, "spec": {**body["spec"], **spec}})
    town.put(changed)
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
def test_each_slot_has_its_resource_claim(scene: Callable[[DraTown], InferenceEngine], expected: str) -> None:
    town = DraTown(2)
    assert decided(town, scene(town)) == expected


def test_a_pool_of_a_device_plugin_has_none_left() -> None:
    town = DraTown(2, sharing={"mode": "None"})
    assert decided(town, town.serving("chat", "n1")) == "removes chat-0-gpus"


def test_a_slot_that_is_lent_has_no_placeholder() -> None:
    """Its ResourceClaim has the devices all the while."""
    town = DraTown(2)
    engine = lent(town)
    assert plan_engine(town.world, engine, NOW).placeholders.make == ()
    assert planned_status(town.world, engine, NOW).lent == 1


def test_a_pool_of_another_class_gives_a_slot_another_claim_when_it_starts() -> None:
    town = DraTown(2)
    engine = town.engine("chat", 1)
    town.slot(engine, 0, size=0)
    town.slot_has(engine, 0, "", asks=("gpu.old.example.com", 1))
    assert decided(town, engine) == "removes chat-0-gpus"
