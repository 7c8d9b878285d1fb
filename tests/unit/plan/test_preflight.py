"""What a claim's pods must fit before anybody is disturbed: what they are, not what the job asks for."""

from dataclasses import replace

import pytest

from sluice_api.claim import SlotRef
from sluice_api.reasons import Reason
from sluice_operator.facts.live_claims import live_claims
from sluice_operator.observe.views import Resources
from sluice_operator.plan.preflight import preflight_obstacle
from tests.unit.plan.worlds import GPU, WorldBuilder

GIB = 1 << 30


@pytest.mark.parametrize(
    ("rule", "added", "lack"),
    [
        ("nothing added", {}, ""),
        ("memory of a sidecar", {"memory": 80 * GIB}, "memory: needs 80Gi, 64Gi of 64Gi is left"),
        ("cpu of a sidecar", {"cpu": 40_000}, "cpu: needs 40, 32 of 32 is left"),
        (
            "disk by a LimitRange",
            {"ephemeral-storage": 30 * GIB},
            "ephemeral-storage: needs 30Gi, 20Gi of 20Gi is left",
        ),
        ("disk that is there", {"ephemeral-storage": 20 * GIB}, ""),
        ("a device that its own plugin counts", {"example.com/nic": 1}, ""),
    ],
)
def test_preflight_counts_resources_added_to_the_pod(rule: str, added: Resources, lack: str) -> None:
    builder = WorldBuilder()
    node = builder.node(1)
    builder.version += 1
    builder.put(
        replace(
            node,
            resource_version=builder.version,
            allocatable={**node.allocatable, "ephemeral-storage": 20 * GIB},
        )
    )
    engine = builder.engine("chat", 1, preemption={"policy": "ScaleDown", "minReplicas": 0})
    builder.slot(engine, 0, "n1")
    claim = builder.claim("n1", SlotRef(namespace="team", engine="chat", index=0))
    pod = builder.trainer_pod(builder.stage_job(builder.job("a"), claim=claim))
    builder.version += 1
    builder.put(replace(pod, resource_version=builder.version, requests={GPU: 1, "cpu": 1, **added}))
    (live,) = live_claims(builder.world)
    found = preflight_obstacle(builder.world, live)
    assert (found.message if found else "").endswith(f"{lack}." if lack else ""), rule
    assert bool(found) == bool(lack), rule


@pytest.mark.parametrize(
    ("others_serve", "floor", "is_proven"),
    [
        (True, 1, True),
        (False, 1, False),  # the other replica failed since the claim was made
        (True, 2, False),  # the floor was raised since then
    ],
)
def test_claim_is_not_proven_while_the_lender_can_not_spare_its_replica(
    others_serve: bool, floor: int, is_proven: bool
) -> None:
    builder = WorldBuilder()
    builder.node(2)
    engine = builder.engine("chat", 2, preemption={"policy": "ScaleDown", "minReplicas": floor})
    builder.slot(engine, 0, "n1", ready=others_serve)
    builder.slot(engine, 1, "n1")
    claim = builder.claim("n1", SlotRef(namespace="team", engine="chat", index=1))
    builder.trainer_pod(builder.stage_job(builder.job("a"), claim=claim))
    (live,) = live_claims(builder.world)
    found = preflight_obstacle(builder.world, live)
    assert (found is None) == is_proven
    assert found is None or found.reason is Reason.ENGINE_AT_FLOOR


def test_slot_of_one_lender_is_not_taken_for_the_same_slot_of_another() -> None:
    """A job of two pods borrows replica 1 of chat, and replica 0 of spare: chat keeps its replica 0."""
    builder = WorldBuilder()
    for name, node, floor in (("chat", "n1", 1), ("spare", "n2", 0)):
        builder.node(2)
        engine = builder.engine(name, 2, preemption={"policy": "ScaleDown", "minReplicas": floor})
        for index in (0, 1):
            builder.slot(engine, index, node)
    job = builder.job("a", resources={"nodes": 2})
    slots = (SlotRef(namespace="team", engine=name, index=index) for name, index in (("chat", 1), ("spare", 0)))
    claim = builder.claim(["n1", "n2"], *slots)
    stage_job = builder.stage_job(job, claim=claim)
    for index in (0, 1):
        builder.trainer_pod(stage_job, index=index)
    (live,) = live_claims(builder.world)
    assert preflight_obstacle(builder.world, live) is None
