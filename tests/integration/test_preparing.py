"""At most so many jobs prepare their data at once, with a real API server's delays; the next begins when one ends."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from sluice_api.meta import JOB_LABEL
from sluice_api.stages import Stage
from tests.integration.claim_scene import ClaimScene
from tests.integration.conftest import MakeOperator
from tests.integration.nodes import Nodes
from tests.integration.progress_scene import SLUICE, Kube

pytestmark = pytest.mark.integration

JOBS = ("a", "b", "c", "d")


@pytest_asyncio.fixture
async def pool(kube: Kube, namespace: str) -> AsyncIterator[str]:
    """A pool of this test alone, in which two prepare at once."""
    spec = {"nodeSelector": {"pool": namespace}, "prepare": {"atOnce": 2}}
    body = {"apiVersion": "sluice.dev/v1alpha1", "kind": "GPUPool", "metadata": {"name": namespace}, "spec": spec}
    await kube.call("POST", f"{SLUICE}/gpupools", body)
    yield namespace
    await kube.call("DELETE", f"{SLUICE}/gpupools/{namespace}")


async def test_prepare_at_once_bounds_the_jobs_that_prepare(
    scene: ClaimScene, nodes: Nodes, pool: str, operator: MakeOperator
) -> None:
    await nodes.add(f"{pool}-n1", gpus=2, pool=pool)
    for job in JOBS:
        await scene.job(job, pool=pool, prepared=False)
    operator()  # all are there at its start: its workers take several at once

    def preparing() -> set[str]:
        found = (stage for job in JOBS for stage in scene.stage_jobs(job, Stage.PREPARE))
        return {
            stage["metadata"]["labels"][JOB_LABEL] for stage in found if not stage.get("status", {}).get("conditions")
        }

    left = set(JOBS)
    while left:
        await scene.history.until(lambda: len(preparing() & left) == min(2, len(left)), "two prepare, or the last one")
        for job in sorted(left - preparing())[:1]:
            assert "2 jobs of pool" in await scene.job_says(job, "WaitingToPrepare")
        assert len(preparing()) <= 2
        done = min(preparing() & left)
        await scene.finishes(done, Stage.PREPARE)
        left.discard(done)
    born = [version for version in scene.history.ordered("jobs") if "prepare" in version.name]
    assert len({version.name for version in born}) == len(JOBS)
