"""GPUs that DRA serves, with the real scheduler and the real controller of ResourceClaims; there is no driver."""

import asyncio
from typing import Any

import pytest

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


async def test_devices_are_counted_handed_out_and_shared(
    scene: ClaimScene,
    nodes: Nodes,
    kube: Kube,
    namespace: str,
    operator: MakeOperator,
    control_plane: ControlPlane,
) -> None:
    """Four GPUs: a replica's, a job's, a stranger's and a free one. A guest of the replica takes none."""
    names = (f"{namespace}-1", f"{namespace}-2")
    async with devices(kube, namespace, nodes, 2, *names) as there:
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
        await _larger(scene, there)


async def _larger(scene: ClaimScene, there: Devices) -> None:
    """A replica of more GPUs: what its pod has can't be changed, so it is replaced as the pod is."""
    before = (await there.claims())["chat-0-gpus"]["metadata"]["uid"]
    (old,) = (pod for pod in scene.history.now["pods"] if pod.startswith("chat-0-"))
    await scene.patch("inferenceengines", "chat", {"spec": {"resources": {"gpus": 2}}})
    await scene.history.until(lambda: old not in scene.history.now["pods"], "the old pod is gone")
    await scene.serves(1)
    claim = (await there.claims())["chat-0-gpus"]
    assert claim["metadata"]["uid"] != before
    assert len(claim["status"]["allocation"]["devices"]["results"]) == 2


async def test_a_pool_of_another_mode_names_the_nodes(
    scene: ClaimScene, nodes: Nodes, kube: Kube, namespace: str, operator: MakeOperator, control_plane: ControlPlane
) -> None:
    """And with the remedy that it names, the job runs."""
    async with devices(kube, namespace, nodes, 1, f"{namespace}-1") as there:
        await there.set_mode("None")
        await operator().leads()
        await scene.job("a", "Queue", pool=there.pool)
        message = await scene.job_says("a", "NoNodes")
        assert f"{namespace}-1 offers GPUs by DRA ({there.driver})" in message
        await counts(control_plane, there.pool, gpus=0, free=0)
        pool = await asyncio.to_thread(Kubectl(control_plane.kubeconfig).read, "gpupool", there.pool)
        assert "Set spec.sharing.mode: DRA" in pool["status"]["conditions"][0]["message"]
        await there.set_mode("DRA")
        await scene.running("a")
