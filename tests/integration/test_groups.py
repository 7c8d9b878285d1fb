"""Several pods that train together: claimed, bound, ended and tried again as one."""

import pytest

from sluice_api.stages import Stage
from tests.integration.claim_scene import REQUEUED, ClaimScene, claim_of
from tests.integration.conftest import MakeOperator
from tests.integration.nodes import Nodes, finish_pod
from tests.integration.progress_scene import Kube

pytestmark = pytest.mark.integration


async def test_group_borrows_on_two_nodes_and_requeues_as_one(
    scene: ClaimScene, nodes: Nodes, namespace: str, operator: MakeOperator, kube: Kube
) -> None:
    """Lent on both nodes at once; one pod that is lost starts all of them again; the first one's end is the end."""
    for name in ("n1", "n2"):
        await nodes.add(f"{namespace}-{name}", gpus=1)
    operator()
    await scene.engine("chat", replicas=2, floor=0)
    await scene.serves(2)
    await scene.job("j", nodes=2)
    pods = [await scene.running("j", index=index) for index in (0, 1)]
    (stage_job,) = scene.stage_jobs("j")
    claim = claim_of(stage_job)
    assert claim is not None
    assert [pod["spec"]["nodeName"] for pod in pods] == list(claim.nodes)
    assert sorted(claim.nodes) == [f"{namespace}-n1", f"{namespace}-n2"]
    assert list(scene.sizes().values()) == [0, 0]
    await _finds_the_first_by_name(kube, namespace, stage_job["metadata"]["name"])

    await finish_pod(kube, pods[1], 75, REQUEUED.to_json())
    for index in (0, 1):
        await scene.running("j", attempt=2, index=index)
    assert claim_of(scene.stage_jobs("j")[-1]) == claim, "the next attempt has the same places"
    assert list(scene.sizes().values()) == [0, 0], "and no replica started in between"

    await scene.finishes("j", attempt=2)
    await scene.finishes("j", Stage.EXPORT)
    await scene.succeeds("j")
    await scene.serves(2)
    (lost,) = [a for a in scene.status("finetunejobs", "j")["attempts"] if a["reason"] != "Done"]
    assert (lost["reason"], lost["attempt"]) == ("Requeued", 1)


async def test_group_borrows_nothing_before_all_its_gpus_are_there(
    scene: ClaimScene, nodes: Nodes, namespace: str, operator: MakeOperator
) -> None:
    await nodes.add(f"{namespace}-n1", gpus=2)
    operator()
    await scene.engine("chat", replicas=2, floor=1)
    await scene.serves(2)
    await scene.job("j", nodes=2)
    assert "Waiting for 2 x 1 GPUs" in await scene.job_says("j", "EngineAtFloor")
    await nodes.add(f"{namespace}-n2", gpus=1)
    for index in (0, 1):
        await scene.running("j", index=index)
    assert sorted(scene.sizes().values()) == [0, 1]


async def _finds_the_first_by_name(kube: Kube, namespace: str, job: str) -> None:
    """The Service's name and the first pod's host name are what the pods have been told."""
    found = await kube.call("GET", f"/api/v1/namespaces/{namespace}/pods?labelSelector=job-name={job}")
    for pod in found["items"]:
        env = {entry["name"]: entry.get("value") for entry in pod["spec"]["containers"][0]["env"]}
        first, service = str(env["MASTER_ADDR"]).split(".")
        assert (f"{job}-0", pod["spec"]["subdomain"]) == (first, service)
        made = await kube.call("GET", f"/api/v1/namespaces/{namespace}/services/{service}")
        assert made["spec"]["clusterIP"] == "None"
        assert made["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    hosts = {pod["spec"]["hostname"] for pod in found["items"]}
    assert hosts == {f"{job}-0", f"{job}-1"}
