"""What a claim's pods must fit before anybody is disturbed: what they are, not what the job asks for."""

from dataclasses import replace

import pytest

from sluice_api.claim import SlotRef
from sluice_operator.facts.liveness import live_claims
from sluice_operator.observe.views import Resources
from sluice_operator.plan.preflight import doubt
from tests.unit.plan.worlds import GPU, Town

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
def test_what_others_have_added_to_the_pod_counts(rule: str, added: Resources, lack: str) -> None:
    town = Town()
    node = town.node(1)
    town.version += 1
    town.put(
        replace(
            node,
            resource_version=town.version,
            allocatable={**node.allocatable, "ephemeral-storage": 20 * GIB},
        )
    )
    engine = town.engine("chat", 1, preemption={"policy": "ScaleDown"})
    town.slot(engine, 0, "n1")
    claim = town.claim("n1", SlotRef(namespace="team", engine="chat", index=0))
    pod = town.trainer_pod(town.stage_job(town.job("a"), claim=claim))
    town.version += 1
    town.put(replace(pod, resource_version=town.version, requests={GPU: 1, "cpu": 1, **added}))
    (live,) = live_claims(town.world)
    found = doubt(town.world, live)
    assert (found.message if found else "").endswith(f"{lack}." if lack else ""), rule
    assert bool(found) == bool(lack), rule
