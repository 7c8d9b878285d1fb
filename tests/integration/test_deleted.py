"""Training whose job is deleted ends, with the real garbage collector; and so does a Job while no operator runs."""

from typing import Any

import pytest

from sluice_api.meta import API_VERSION
from sluice_api.stages import Stage
from tests.integration.claim_scene import MODEL, VOLUME, ClaimScene
from tests.integration.conftest import MakeOperator
from tests.integration.nodes import MERGE_PATCH, Nodes
from tests.integration.progress_scene import Kube

pytestmark = pytest.mark.integration

Body = dict[str, Any]


def is_gone(scene: ClaimScene, job: str) -> bool:
    """Whether no Job and no pod of a job is there."""
    here = (*scene.history.now["jobs"].values(), *scene.history.now["pods"].values())
    return not any(body["metadata"].get("labels", {}).get("sluice.dev/job") == job for body in here)


@pytest.mark.parametrize("how", ["a finalizer keeps it", "its Job is orphaned"])
async def test_training_of_a_deleted_job_is_ended(
    scene: ClaimScene, kube: Kube, nodes: Nodes, operator: MakeOperator, how: str
) -> None:
    await nodes.add(f"{scene.namespace}-n1", gpus=1)
    operator()
    job = scene.path("finetunejobs", "one")
    await scene.job("one", policy="Queue")
    await scene.running("one")
    if how == "a finalizer keeps it":
        await kube.call("PATCH", job, {"metadata": {"finalizers": ["example.com/keep"]}}, MERGE_PATCH)
        await kube.call("DELETE", job)
    else:
        await kube.call("DELETE", f"{job}?propagationPolicy=Orphan")
    await scene.history.until(lambda: is_gone(scene, "one"), "all that ran for it is gone")
    if how == "a finalizer keeps it":
        await scene.history.until(lambda: scene.status("finetunejobs", "one").get("summary") == "Deleted", "it says so")
        await kube.call("PATCH", job, {"metadata": {"finalizers": None}}, MERGE_PATCH)
    await scene.job("two", policy="Queue")
    await scene.running("two")


async def test_orphaned_training_is_ended_by_the_next_operator(
    scene: ClaimScene, kube: Kube, nodes: Nodes, operator: MakeOperator
) -> None:
    await nodes.add(f"{scene.namespace}-n1", gpus=1)
    leader = operator("first")
    await scene.job("one", policy="Queue")
    pod = await scene.running("one")
    leader.kill()
    (owner,) = pod["metadata"]["ownerReferences"]
    stage_job = f"/apis/batch/v1/namespaces/{scene.namespace}/jobs/{owner['name']}"
    for place in (scene.path("finetunejobs", "one"), stage_job):
        await kube.call("DELETE", f"{place}?propagationPolicy=Orphan")

    def alone() -> bool:
        there = scene.history.now["pods"].get(pod["metadata"]["name"], {}).get("metadata", {})
        return bool(there) and not there.get("ownerReferences") and not scene.history.now["jobs"]

    await scene.history.until(alone, "the pod has no Job")
    operator("second")
    await scene.history.until(lambda: is_gone(scene, "one"), "the pod is gone")


async def test_stage_deadline_seconds_holds_while_no_operator_runs(
    scene: ClaimScene, kube: Kube, nodes: Nodes, operator: MakeOperator
) -> None:
    await nodes.add(f"{scene.namespace}-n1", gpus=1)
    leader = operator("first")
    spec = {
        "model": {"uri": MODEL},
        "dataset": {"uri": f"pvc://{VOLUME}/rows.jsonl"},
        "output": {"uri": f"pvc://{VOLUME}/out"},
        "resources": {"memory": "100Mi", "cpu": "10m"},
        "stageDeadlineSeconds": 3,
    }
    body = {"apiVersion": API_VERSION, "kind": "FineTuneJob", "metadata": {"name": "slow"}, "spec": spec}
    await kube.call("POST", scene.path("finetunejobs"), body)
    await scene.running("slow", Stage.PREPARE)
    leader.kill()

    def failed() -> bool:
        conditions = [c for job in scene.history.now["jobs"].values() for c in job["status"].get("conditions") or ()]
        return any((c["type"], c.get("reason")) == ("Failed", "DeadlineExceeded") for c in conditions)

    await scene.history.until(failed, "the Job controller ends it")
    operator("second")
    message = await scene.job_says("slow", "DeadlineExceeded")
    assert "Prepare has not ended after 3 s (spec.stageDeadlineSeconds)" in message
