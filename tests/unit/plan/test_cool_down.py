"""The pause of an engine that has got a replica back."""

from dataclasses import replace
from datetime import timedelta

import pytest

from sluice_operator.observe.world import job_key
from tests.unit.plan.worlds import NOW, WorldBuilder, allocated, describe

LENDS = {"policy": "ScaleDown", "minReplicas": 0}


@pytest.mark.parametrize(
    ("rule", "cool_down", "serves", "ends"),
    [
        ("it rests after a return", 60, True, 60),
        ("until the replica serves again", 60, False, 600),
        ("which a longer rest may outlast", 1800, False, 1800),
    ],
)
def test_cool_down_seconds_delay_the_next_loan(rule: str, cool_down: int, serves: bool, ends: int) -> None:
    builder = WorldBuilder()
    builder.node(2)
    engine = builder.engine("chat", 2, preemption={**LENDS, "coolDownSeconds": cool_down})
    for index in (0, 1):
        builder.slot(engine, index, "n1", ready=serves or index == 0)
    restarted = next(slot for slot in builder.world.slots.values() if slot.index == 1)
    builder.put(replace(restarted, restarted_at=NOW, resource_version=999))
    builder.job("a")
    over = NOW + timedelta(seconds=ends)
    allocation = allocated(builder, over - timedelta(seconds=1))
    assert describe(allocation) == "a waits EngineCoolsDown"
    said = f"chat has got a replica back; it lends from {over:%H:%M:%S} UTC on at the latest."
    assert said in allocation.waits[job_key("team", "a")].message
    assert describe(allocated(builder, over)) == "a takes chat/1"


def test_cool_down_seconds_of_zero_lends_a_starting_replica() -> None:
    builder = WorldBuilder()
    builder.node(1)
    engine = builder.engine("chat", 1, preemption={**LENDS, "coolDownSeconds": 0})
    builder.slot(engine, 0, "n1", ready=False)
    (restarted,) = builder.world.slots.values()
    builder.put(replace(restarted, restarted_at=NOW, resource_version=999))
    builder.job("a")
    assert describe(allocated(builder, NOW)) == "a takes chat/0"
