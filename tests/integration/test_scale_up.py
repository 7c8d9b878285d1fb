"""Nodes before loans, with the whole operator and the real scheduler: the test plays the cluster autoscaler."""

import time
from typing import Any

import pytest

from sluice_api.meta import API_VERSION, SCALE_UP_LABEL
from tests.integration.claim_scene import ClaimScene, is_going
from tests.integration.conftest import MakeOperator
from tests.integration.history import SLUICE
from tests.integration.nodes import Nodes
from tests.integration.progress_scene import Kube

pytestmark = pytest.mark.integration

Body = dict[str, Any]


def asking(scene: ClaimScene) -> list[Body]:
    """The pods that ask for nodes."""
    pods = scene.history.now["pods"].values()
    return [pod for pod in pods if SCALE_UP_LABEL in pod["metadata"].get("labels", {}) and not is_going(pod)]


def is_seen(pod: Body) -> bool:
    """Whether an autoscaler looks at a pod: kube-scheduler has tried, and found no node for it."""
    conditions = pod["status"].get("conditions", ())
    return any((c["type"], c.get("reason")) == ("PodScheduled", "Unschedulable") for c in conditions)


async def seen(scene: ClaimScene, pods: int) -> list[Body]:
    """So many pods that ask, once an autoscaler sees them."""
    return await scene.history.until(
        lambda: found if len(found := [pod for pod in asking(scene) if is_seen(pod)]) == pods else None,
        f"{pods} pods ask for nodes",
    )


async def nobody_asks(scene: ClaimScene) -> None:
    """Wait until no pod asks for a node."""
    await scene.history.until(lambda: not asking(scene), "no pod asks for a node")


def was_lent(scene: ClaimScene) -> list[str]:
    """States of slots that a loan had at any time."""
    states = (
        slot["state"]
        for version in scene.history.ordered("inferenceengines")
        for slot in version.body.get("status", {}).get("slots", [])
    )
    return [state for state in states if state in ("Draining", "Stopping", "Lent")]


async def test_scale_up_first_borrows_nothing_if_a_node_is_added(
    scene: ClaimScene, nodes: Nodes, namespace: str, operator: MakeOperator
) -> None:
    await nodes.add(f"{namespace}-n1", gpus=2)
    operator()
    await scene.engine("chat", replicas=2)
    await scene.serves(2)
    await scene.job("tone", scaleUpFirst={})
    (pod,) = await seen(scene, 1)
    assert "(scheduling.scaleUpFirst)" in await scene.job_says("tone", "ScalingUp")
    assert pod["spec"].get("schedulingGates") is None
    assert pod["spec"]["containers"][0]["resources"]["requests"] == {
        "cpu": "10m",
        "memory": "100Mi",
        "nvidia.com/gpu": "1",
        "ephemeral-storage": "1Gi",
    }
    added = await nodes.add(f"{namespace}-n2", gpus=1)
    assert (await scene.running("tone"))["spec"]["nodeName"] == added
    await nobody_asks(scene)
    assert was_lent(scene) == []


async def test_scale_up_first_borrows_after_wait_seconds(
    scene: ClaimScene, nodes: Nodes, namespace: str, operator: MakeOperator
) -> None:
    await nodes.add(f"{namespace}-n1", gpus=2)
    operator()
    await scene.engine("chat", replicas=2)
    await scene.serves(2)
    began = time.monotonic()
    await scene.job("tone", scaleUpFirst={"waitSeconds": 5})
    await seen(scene, 1)
    await scene.history.until(lambda: scene.stage_jobs("tone"), "the claim is made")
    claimed = min(v.at for v in scene.history.ordered("jobs"))
    assert claimed - began > 3.9  # `ready` is said to the second
    await scene.running("tone")
    await nobody_asks(scene)
    assert "Draining" in was_lent(scene)


async def test_scale_up_pod_of_an_empty_pool_keeps_no_replica_out(
    scene: ClaimScene, nodes: Nodes, namespace: str, operator: MakeOperator, kube: Kube
) -> None:
    """The first node has a pod that asks on it, for a job that lacks the second; an engine gets that node."""
    label = {"pool": namespace}
    body = {"apiVersion": API_VERSION, "kind": "GPUPool", "metadata": {"name": namespace}}
    await kube.call("POST", f"{SLUICE}/gpupools", {**body, "spec": {"nodeSelector": label}})
    try:
        operator()
        await scene.job("wide", policy="Queue", nodes=2, pool=namespace, scaleUpFirst={})
        await seen(scene, 2)
        message = await scene.job_says("wide", "ScalingUp")
        assert f"pool {namespace} has no node" in message
        first = await nodes.add(f"{namespace}-n1", gpus=1, **label)
        await scene.history.until(
            lambda: [p for p in asking(scene) if p["spec"].get("nodeName") == first], "it is bound"
        )

        await scene.engine("chat", replicas=1, pool=namespace)
        await scene.serves(1)
        await seen(scene, 2)  # both ask again
        await nodes.add(f"{namespace}-n2", gpus=1, **label)
        await nodes.add(f"{namespace}-n3", gpus=1, **label)
        placed = {(await scene.running("wide", index=index))["spec"]["nodeName"] for index in (0, 1)}
        assert placed == {f"{namespace}-n2", f"{namespace}-n3"}
        await nobody_asks(scene)
        assert scene.ready() == 1
    finally:
        await kube.call("DELETE", f"{SLUICE}/gpupools/{namespace}")


async def test_scale_up_pods_go_when_the_job_is_suspended_or_the_pool_gone(
    scene: ClaimScene, nodes: Nodes, namespace: str, operator: MakeOperator, kube: Kube
) -> None:
    body = {"apiVersion": API_VERSION, "kind": "GPUPool", "metadata": {"name": namespace}}
    await kube.call("POST", f"{SLUICE}/gpupools", {**body, "spec": {"nodeSelector": {"pool": namespace}}})
    operator()
    await scene.job("tone", policy="Queue", pool=namespace, scaleUpFirst={})
    await seen(scene, 1)
    await scene.patch("finetunejobs", "tone", {"spec": {"suspend": True}})
    await nobody_asks(scene)
    await scene.patch("finetunejobs", "tone", {"spec": {"suspend": False}})
    await seen(scene, 1)
    await kube.call("DELETE", f"{SLUICE}/gpupools/{namespace}")
    await scene.job_says("tone", "PoolNotFound")
    await nobody_asks(scene)


async def test_resource_quota_for_the_job_alone_allows_scale_up_and_training(
    scene: ClaimScene, nodes: Nodes, namespace: str, operator: MakeOperator, kube: Kube
) -> None:
    """It counts the pods that ask. One that has a node keeps it for the training pod, until that one is refused: the
    claim is given up then, and the next one, at no attempt's cost, finds the quota free.
    """
    quota = {"metadata": {"name": "two"}, "spec": {"hard": {"requests.nvidia.com/gpu": "2"}}}
    await kube.call("POST", f"/api/v1/namespaces/{namespace}/resourcequotas", quota)
    operator()
    await scene.job("wide", policy="Queue", nodes=2, scaleUpFirst={})
    await seen(scene, 2)
    await nodes.add(f"{namespace}-n1", gpus=1)
    await scene.history.until(lambda: [p for p in asking(scene) if p["spec"].get("nodeName")], "one is bound")
    await nodes.add(f"{namespace}-n2", gpus=1)
    for index in (0, 1):
        await scene.running("wide", attempt=2, index=index)
    await nobody_asks(scene)
