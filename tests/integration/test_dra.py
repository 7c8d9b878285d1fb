"""GPUs that DRA serves, with the real scheduler and the real controller of ResourceClaims; there is no driver."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from dev.cluster.control_plane import ControlPlane
from tests.integration.claim_scene import ClaimScene
from tests.integration.conftest import MakeOperator
from tests.integration.dra import Devices, devices
from tests.integration.kubectl import Kubectl
from tests.integration.nodes import Nodes
from tests.integration.progress_scene import Kube

pytestmark = pytest.mark.integration


async def counts(plane: ControlPlane, pool: str, **expected: int) -> None:
    """Wait until a pool's status has these numbers, the free GPUs last: what is counted, all at the same time."""
    kubectl = Kubectl(plane.kubeconfig)
    for name, number in expected.items():
        words = ("wait", "gpupool", pool, f"--for=jsonpath={{.status.{name}}}={number}", "--timeout=30s")
        await asyncio.to_thread(kubectl.must, *words)
    status = (await asyncio.to_thread(kubectl.read, "gpupool", pool))["status"]
    assert {name: status[name] for name in expected} == expected


def users(claim: dict[str, Any]) -> set[str]:
    """The pods that use a ResourceClaim."""
    return {user["name"] for user in claim["status"].get("reservedFor", ())}


@pytest_asyncio.fixture
async def there(kube: Kube, namespace: str, nodes: Nodes) -> AsyncIterator[Devices]:
    """Two nodes of two GPUs. A test names it first: its pool is there until the operator has ended."""
    async with devices(kube, namespace, nodes, 2, f"{namespace}-1", f"{namespace}-2") as made:
        yield made


async def test_dra_devices_are_counted_allocated_and_shared(
    there: Devices, scene: ClaimScene, operator: MakeOperator, control_plane: ControlPlane
) -> None:
    """Four GPUs: a replica's, a job's, a stranger's and a free one. A guest of the replica takes none."""
    await operator().leads()
    await scene.engine(replicas=1, pool=there.pool, utilization="0.60")
    await scene.serves(1)
    await counts(control_plane, there.pool, gpus=4, inference=1, training=0, others=0, free=3)

    await scene.job("waits", "Queue", pool=there.pool)
    trainer = await scene.running("waits")
    await scene.job("visits", "Shared", pool=there.pool)
    guest = await scene.running("visits")
    await there.stranger("somebody")
    await counts(control_plane, there.pool, others=1, gpus=4, inference=1, training=1, lent=0, free=1)

    claims = await there.claims()
    (slot,) = (pod for pod in scene.history.now["pods"] if pod.startswith("chat-0-"))
    assert users(claims["chat-0-gpus"]) == {slot, guest["metadata"]["name"]}
    own = [claim for claim in claims.values() if users(claim) == {trainer["metadata"]["name"]}]
    assert len(own) == 1
    assert scene.status("finetunejobs", "visits")["allocation"]["beside"] == "chat/0"

    await scene.finishes("waits")
    await scene.finishes("visits")
    await counts(control_plane, there.pool, training=0, inference=1, others=1, free=2)


async def test_resource_claim_is_replaced_when_a_replica_needs_more_gpus(
    there: Devices, scene: ClaimScene, operator: MakeOperator
) -> None:
    """What a ResourceClaim asks for can't be changed, so it is replaced as the replica restarts."""
    await operator().leads()
    await scene.engine(replicas=1, pool=there.pool)
    await scene.serves(1)
    before = (await there.claims())["chat-0-gpus"]["metadata"]["uid"]
    (old,) = (pod for pod in scene.history.now["pods"] if pod.startswith("chat-0-"))
    await scene.patch("inferenceengines", "chat", {"spec": {"resources": {"gpus": 2}}})
    await scene.history.until(lambda: old not in scene.history.now["pods"], "the old pod is gone")
    await scene.serves(1)
    claim = (await there.claims())["chat-0-gpus"]
    assert claim["metadata"]["uid"] != before
    assert len(claim["status"]["allocation"]["devices"]["results"]) == 2


async def test_resource_claim_is_deleted_with_its_replica(
    there: Devices, scene: ClaimScene, operator: MakeOperator, control_plane: ControlPlane
) -> None:
    await operator().leads()
    await scene.engine(replicas=2, pool=there.pool)
    await scene.serves(2)
    await scene.scale("chat", 1)
    await scene.serves(1)
    await counts(control_plane, there.pool, inference=1, free=3)
    gone = ("wait", "resourceclaim", "chat-1-gpus", f"--namespace={scene.namespace}", "--for=delete", "--timeout=30s")
    await asyncio.to_thread(Kubectl(control_plane.kubeconfig).must, *gone)
    assert list(await there.claims()) == ["chat-0-gpus"]


async def test_pool_without_sharing_mode_dra_names_the_nodes_with_dra(
    there: Devices, scene: ClaimScene, namespace: str, operator: MakeOperator, control_plane: ControlPlane
) -> None:
    """And with the remedy that it names, the job runs."""
    await there.set_mode("None")
    await operator().leads()
    await scene.job("a", "Queue", pool=there.pool)
    message = await scene.job_says("a", "NoNodes")
    assert f"{namespace}-1, {namespace}-2 offer GPUs by DRA ({there.driver})" in message
    await counts(control_plane, there.pool, gpus=0, free=0)
    pool = await asyncio.to_thread(Kubectl(control_plane.kubeconfig).read, "gpupool", there.pool)
    assert "Set spec.sharing.mode: DRA" in pool["status"]["conditions"][0]["message"]
    await there.set_mode("DRA")
    await scene.running("a")
