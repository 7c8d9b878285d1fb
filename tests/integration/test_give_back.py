"""Before an uninstall: training ends, and every lent slot comes back, while the operator itself still runs."""

from typing import Any

import pytest

from dev.cluster.control_plane import ControlPlane
from sluice_api.stages import PrepareResult, StageOutcome
from tests.integration.conftest import MakeOperator
from tests.integration.nodes import Nodes, add_volume, finish_pod, set_pod_running
from tests.integration.progress_scene import JOB_SPEC, Kube, until
from tests.integration.running_operator import RunningOperator

pytestmark = pytest.mark.integration

ENGINE = {
    "model": {"uri": "pvc://models/tiny"},
    "replicas": 2,
    "resources": {"memory": "1Gi"},
    "preemption": {"policy": "ScaleDown", "minReplicas": 1, "drainTimeoutSeconds": 1},
}
PREPARED = StageOutcome(
    reason="Done",
    prepare=PrepareResult(rows=10, validation_rows=1, refused_rows=0, tokens=100, learnt_tokens=50, steps=5),
)


@pytest.mark.timeout(240)
async def test_give_back_ends_training_and_brings_every_slot_back(
    operator: MakeOperator,
    nodes: Nodes,
    kube: Kube,
    control_plane: ControlPlane,
    namespace: str,
    tmp_path: Any,
) -> None:
    await nodes.add(f"n-{namespace}", gpus=2)
    for volume in ("models", "datasets", "adapters"):
        await add_volume(kube, namespace, volume)
    running = operator("operator-0", lease_seconds=5)
    await running.leads()
    sluice = f"/apis/sluice.dev/v1alpha1/namespaces/{namespace}"
    body = {"apiVersion": "sluice.dev/v1alpha1", "metadata": {"name": "chat"}}
    await kube.call("POST", f"{sluice}/inferenceengines", {**body, "kind": "InferenceEngine", "spec": ENGINE})

    async def sizes() -> dict[str, int]:
        found = await kube.call("GET", f"/apis/apps/v1/namespaces/{namespace}/deployments")
        return {slot["metadata"]["name"]: slot["spec"]["replicas"] for slot in found["items"]}

    async def pods(label: str) -> list[Any]:
        found = await kube.call("GET", f"/api/v1/namespaces/{namespace}/pods?labelSelector={label}")
        return [pod for pod in found["items"] if pod["spec"].get("nodeName")]

    async def become(want: dict[str, int]) -> bool:
        return await sizes() == want

    await until(lambda: become({"chat-0": 1, "chat-1": 1}))

    async def both_bound() -> list[Any]:
        bound = await pods("sluice.dev/engine")
        return bound if len(bound) == 2 else []

    for pod in await until(both_bound):
        await set_pod_running(kube, pod)

    spec = {**JOB_SPEC, "resources": {"memory": "1Gi"}, "scheduling": {"policy": "Preempt"}}
    await kube.call(
        "POST", f"{sluice}/finetunejobs", {**body, "kind": "FineTuneJob", "metadata": {"name": "j"}, "spec": spec}
    )
    (preparing,) = await until(lambda: pods("sluice.dev/stage=Prepare"))
    await finish_pod(kube, preparing, 0, PREPARED.to_json())

    async def lent() -> bool:
        return sorted((await sizes()).values()) == [0, 1]

    try:
        await until(lent)
    except TimeoutError:
        jobs = await kube.call("GET", f"{sluice}/finetunejobs")
        raise AssertionError(f"{jobs['items'][0]['status']} {await sizes()}") from None

    hook = RunningOperator.start(
        tmp_path, "give-back", control_plane.kubeconfig, namespace, {"lease_seconds": 5}, "give-back"
    )
    try:
        assert hook.process.wait(timeout=100) == 0
    finally:
        hook.kill()
    assert hook.events("every slot is back"), hook.log.read_text()
    assert await sizes() == {"chat-0": 1, "chat-1": 1}
    trainers = await kube.call(
        "GET", f"/apis/batch/v1/namespaces/{namespace}/jobs?labelSelector=sluice.dev/stage=Train"
    )
    assert trainers["items"] == []
    assert running.events("no longer leading") or running.events("stepping down")
    assert running.process.poll() is None
