"""A job that another controller runs (spec.managedBy): Sluice says so once, and never touches it again."""

import pytest

from tests.integration.claim_scene import ClaimScene
from tests.integration.conftest import MakeOperator
from tests.integration.nodes import MERGE_PATCH, Nodes
from tests.integration.progress_scene import Kube

pytestmark = pytest.mark.integration


async def test_job_with_managed_by_is_left_alone(
    scene: ClaimScene, nodes: Nodes, namespace: str, operator: MakeOperator, kube: Kube
) -> None:
    await nodes.add(f"{namespace}-n1", gpus=1)
    operator()
    body = (await scene.job("tone", policy="Queue"))["spec"]
    await scene.running("tone")
    spec = {**body, "managedBy": "kueue.x-k8s.io/multikueue"}
    job = {"apiVersion": "sluice.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "theirs"}, "spec": spec}
    await kube.call("POST", scene.path("finetunejobs"), job)
    assert await scene.job_says("theirs", "ManagedElsewhere") == "spec.managedBy is kueue.x-k8s.io/multikueue."

    theirs = {"type": "Succeeded", "status": "Unknown", "reason": "Remote", "message": "on cluster b"}
    theirs["lastTransitionTime"] = "2026-11-25T00:00:00Z"
    status = {"status": {"summary": "Remote", "conditions": [theirs]}}
    await kube.call("PATCH", f"{scene.path('finetunejobs', 'theirs')}/status", status, MERGE_PATCH)

    def touched() -> object:
        written = [write for write in scene.writes() if write.name == "theirs"]
        return scene.status("finetunejobs", "theirs").get("summary") != "Remote" or len(written) > 1

    await scene.history.until(lambda: not touched(), "the other controller's word is there")
    await scene.history.never(touched, "Sluice wrote into it", 3)
    assert not scene.stage_jobs("theirs")
