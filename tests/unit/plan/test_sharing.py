"""Parts of GPUs, and GPUs of a certain size."""

from typing import Any

import pytest

from sluice_api.claim import Share
from sluice_api.gpupool import SharingMode
from sluice_api.reasons import Reason
from sluice_operator.facts.fit import GPU_MEMORY_LABEL
from sluice_operator.observe.world import job_key
from sluice_operator.plan.job.decide import plan_job
from sluice_operator.settings import Limits
from tests.unit.plan.worlds import NOW, WorldBuilder, allocated, describe, parse

SLICED: dict[str, Any] = {"sharing": {"mode": "TimeSlicing", "replicas": 4}}
SHARED: dict[str, Any] = {"scheduling": {"policy": "Shared"}}


def test_share_of_time_slicing_is_one_part_of_a_gpu() -> None:
    """One physical GPU in four parts, of which the engine has one."""
    builder = parse("pool: 4 gpus | chat: 1 replicas, floor 0")
    builder.pool(**SLICED)
    builder.job("a", scheduling={"policy": "Shared", "share": "25%"})
    (claim,) = allocated(builder).claims.values()
    assert (claim.nodes, claim.gpus, claim.borrowed) == (("n1",), 1, ())
    assert claim.share == Share(mode=SharingMode.TIME_SLICING, percent=25)


def test_a_share_waits_for_a_free_part_and_borrows_none() -> None:
    builder = parse("pool: 1 gpus | chat: 1 replicas, floor 0")
    builder.pool(**SLICED)
    builder.job("a", **SHARED)
    wait = allocated(builder).waits[job_key("team", "a")]
    assert wait.reason is Reason.WAITING_FOR_GPUS
    assert "Waiting for 30% of a GPU" in wait.message


@pytest.mark.parametrize(
    ("rule", "pool", "job", "reason", "says"),
    [
        ("a pool that does not share", {}, SHARED, Reason.POOL_DOES_NOT_SHARE, "spec.scheduling.policy: Shared"),
        ("more than a part of MPS", {"sharing": {"mode": "MPS", "replicas": 4}}, SHARED, Reason.SHARE_TOO_LARGE,
         "spec.scheduling.share: 30% is asked for, MPS gives a pod of GPUPool default one of 4 parts of a GPU. "
         "Ask for at most 25%."),
        ("larger GPUs than there are", {}, {"resources": {"gpuMemory": "48Gi"}}, Reason.EXCEEDS_EVERY_NODE,
         "spec.resources.gpuMemory: needs 48Gi, the node's have 40Gi"),
    ],
)  # fmt: skip
def test_share_or_gpu_memory_beyond_the_pool_is_refused(
    rule: str, pool: dict[str, Any], job: dict[str, Any], reason: Reason, says: str
) -> None:
    builder = WorldBuilder()
    builder.node(4, labels={GPU_MEMORY_LABEL: "40960"})
    builder.pool(**pool)
    decision = plan_job(builder.world, builder.job("a", outcomes=(), **job), NOW, Limits())
    assert (decision.start, decision.reason) == (None, reason), rule
    assert says in decision.message
    assert describe(allocated(builder)) == ""


def test_gpu_memory_selects_a_node_with_large_gpus() -> None:
    builder = WorldBuilder()
    builder.node(1, labels={GPU_MEMORY_LABEL: "24564"})
    builder.node(1)
    builder.node(8, labels={GPU_MEMORY_LABEL: "81559"})
    builder.job("a", resources={"gpuMemory": "40Gi"})
    assert describe(allocated(builder)) == "a takes n3"
