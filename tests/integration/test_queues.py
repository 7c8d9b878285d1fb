"""What a pool allows a namespace, with the whole operator: held back, said why, and let go when it changes."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from dev.cluster.control_plane import ControlPlane
from sluice_api.meta import API_VERSION, DEFAULT_POOL
from tests.integration.claim_scene import ClaimScene
from tests.integration.conftest import MakeOperator
from tests.integration.history import SLUICE
from tests.integration.nodes import MERGE_PATCH, Nodes
from tests.integration.progress_scene import Kube
from tests.integration.running_operator import ROOT

pytestmark = pytest.mark.integration

PLACE = f"{SLUICE}/gpupools/{DEFAULT_POOL}"


@pytest_asyncio.fixture
async def pool(kube: Kube) -> AsyncIterator[None]:
    """The pool `default` as an object; other tests need it not to be there."""
    body = {"apiVersion": API_VERSION, "kind": "GPUPool", "metadata": {"name": DEFAULT_POOL}, "spec": {}}
    await kube.call("POST", f"{SLUICE}/gpupools", body)
    yield
    await kube.call("DELETE", PLACE)


async def explain(plane: ControlPlane, job: str) -> str:
    """What the operator's own words for a person are."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sluice_operator.explain", job),
        env={**os.environ, "KUBECONFIG": str(plane.kubeconfig), "PYTHONPATH": str(ROOT / "operator")},
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0
    return said.decode()


async def change(kube: Kube, **spec: Any) -> None:
    """What an administrator changes in the pool."""
    await kube.call("PATCH", PLACE, {"spec": spec}, MERGE_PATCH)


async def test_a_quota_holds_a_job_back_until_it_is_raised(
    scene: ClaimScene,
    pool: None,
    nodes: Nodes,
    namespace: str,
    operator: MakeOperator,
    kube: Kube,
    control_plane: ControlPlane,
) -> None:
    await nodes.add(f"{namespace}-n1", gpus=2)
    await change(kube, quotas=[{"maxGPUs": 1}])
    operator()
    await scene.job("first")
    await scene.running("first")
    await scene.job("second")
    message = await scene.job_says("second", "NamespaceQuota")
    assert f"Namespace {namespace} holds 1 of the 1" in message
    assert not scene.stage_jobs("second")
    explained = await explain(control_plane, f"{namespace}/second")
    assert f"waits: NamespaceQuota: {message}" in explained
    assert f"1 claimed by {namespace}/first" in explained  # engines of other tests may still wait for the other GPU
    await change(kube, quotas=[{"maxGPUs": 2}])
    await scene.running("second")


async def test_allowed_namespaces_selects_by_labels(
    scene: ClaimScene, pool: None, nodes: Nodes, namespace: str, operator: MakeOperator, kube: Kube
) -> None:
    await nodes.add(f"{namespace}-n1", gpus=1)
    await change(kube, allowedNamespaces={"matchLabels": {"gpus": "yes"}})
    operator()
    await scene.job("waits")
    assert namespace in await scene.job_says("waits", "NamespaceNotAllowed")
    await kube.call("PATCH", f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": {"gpus": "yes"}}}, MERGE_PATCH)
    await scene.running("waits")
