"""What a user is told of a job on the way, and what becomes of it when its time to live is over."""

import asyncio

import pytest
import pytest_asyncio

from sluice_api.stages import Stage
from tests.integration.claim_scene import ClaimScene
from tests.integration.conftest import MakeOperator
from tests.integration.nodes import Nodes
from tests.integration.progress_scene import Kube

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture(autouse=True)
async def lender(scene: ClaimScene, nodes: Nodes, operator: MakeOperator) -> None:
    """An engine of two slots, of which one may be lent, and no other GPU."""
    await nodes.add(f"{scene.namespace}-n1", gpus=2)
    operator()
    await scene.engine("chat", replicas=2)
    await scene.serves(2)


async def goes_all_the_way(scene: ClaimScene, job: str) -> None:
    """It prepares, trains on a slot that it borrows, and exports."""
    await scene.job(job, prepared=False)
    for stage in (Stage.PREPARE, Stage.TRAIN, Stage.EXPORT):
        await scene.finishes(job, stage)
    await scene.succeeds(job)


async def test_each_change_of_a_jobs_summary_is_one_event(scene: ClaimScene, kube: Kube) -> None:
    """Its reasons, as its status had them one after another, and no event else. Others have theirs besides."""
    told = asyncio.create_task(_told(kube, scene.namespace, "tone"))
    await goes_all_the_way(scene, "tone")
    reasons = _summaries(scene, "tone")
    assert await told == reasons
    assert len({*reasons}) == len(reasons), "it changed its mind twice"
    assert {"Preparing", "Training", "Exporting", "Succeeded"} <= {*reasons}


async def test_job_is_deleted_after_ttl_seconds_after_finished(scene: ClaimScene) -> None:
    """By the operator, in one request; its Jobs go with it."""
    await goes_all_the_way(scene, "tone")
    await scene.patch("finetunejobs", "tone", {"spec": {"ttlSecondsAfterFinished": 1}})
    await scene.history.until(lambda: "tone" not in scene.history.now["finetunejobs"], "the job is deleted")
    await scene.history.until(lambda: not scene.history.now["jobs"], "its Jobs go with it")
    assert [write.status for write in scene.writes() if (write.verb, write.name) == ("delete", "tone")] == [200]


async def _told(kube: Kube, namespace: str, job: str) -> list[str]:
    """The reasons of a job's events, up to the one that says that it has succeeded."""
    found = []
    async for event in kube.watch(f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"):
        regarding = event["object"].get("regarding", {})
        if event["type"] == "ADDED" and (regarding.get("kind"), regarding.get("name")) == ("FineTuneJob", job):
            found.append(event["object"]["reason"])
        if found[-1:] == ["Succeeded"]:
            break
    return found


def _summaries(scene: ClaimScene, job: str) -> list[str]:
    """What a job's status said in a word, each change once."""
    found = [""]
    for version in scene.history.ordered("finetunejobs", job):
        summary = version.body.get("status", {}).get("summary", "")
        if summary != found[-1]:
            found.append(summary)
    return found[1:]
