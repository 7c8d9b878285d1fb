"""The claim cycle on a real API server, with real controllers and the real scheduler: the whole operator, as a process.

Only what pods would do is a test's word: fake_kubelet.py runs them, and a test ends a stage with its outcome.
"""

import asyncio

import pytest
import pytest_asyncio

from sluice_api.meta import CLAIM_ANNOTATION
from sluice_api.stages import Stage
from tests.integration.claim_scene import (
    REQUEUED,
    ClaimScene,
    borrowed_slots,
    claim_of,
    is_bindable,
    is_gated,
    is_ready,
    is_slot,
)
from tests.integration.conftest import MakeOperator
from tests.integration.history import Version
from tests.integration.nodes import Nodes
from tests.integration.progress_scene import Kube
from tests.integration.running_operator import in_a_new_interpreter

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def node(nodes: Nodes, namespace: str) -> str:
    """One node of two GPUs."""
    return await nodes.add(f"{namespace}-n1", gpus=2)


async def test_job_borrows_a_slot_trains_publishes_and_returns_the_loan(
    scene: ClaimScene, node: str, operator: MakeOperator
) -> None:
    """By an operator that is started as a pod would start it; those of other tests are forked."""
    operator(launch=in_a_new_interpreter)
    await scene.engine("chat", replicas=2)
    await scene.serves(2)
    await scene.job("tone", publish="chat", prepared=False)

    await scene.finishes("tone", Stage.PREPARE)
    await scene.running("tone")
    (stage_job,) = scene.stage_jobs("tone")
    claim = claim_of(stage_job)
    assert claim is not None
    assert (claim.nodes, claim.gpus, len(claim.borrowed)) == ((node,), 1, 1)
    await scene.history.until(lambda: scene.lent() == 1, "one slot is lent")
    assert sorted(scene.sizes().values()) == [0, 1]

    await scene.finishes("tone")
    await scene.serves(2)
    await scene.finishes("tone", Stage.EXPORT)
    adapter = await scene.history.until(lambda: scene.history.now["adapters"].get("tone"), "the Adapter is written")
    assert adapter["spec"]["engine"] == "chat"
    assert adapter["spec"]["source"]["digest"] == "sha256:" + "0" * 64
    assert scene.lent() == 0
    assert _order_of_the_loan(scene, borrowed_slots([stage_job])[0]) == [
        "claimed",
        "pod made, gated",
        "draining",
        "gate off, tied to the node",
        "nominated",
        "slot stopped",
        "slot's pod going",
        "bound",
        "slot started",
    ]


def _order_of_the_loan(scene: ClaimScene, slot: str) -> list[str]:
    """What happened, in the order in which the API server wrote it."""
    seen: dict[str, int] = {}

    def is_trainer(version: Version) -> bool:
        return version.plural == "pods" and version.body["metadata"]["labels"].get("sluice.dev/stage") == "Train"

    def is_slots_pod(version: Version) -> bool:
        return version.plural == "pods" and version.name.startswith(f"{slot}-")

    def states(version: Version) -> list[str]:
        return [s["state"] for s in version.body.get("status", {}).get("slots", [])]

    for version in scene.history.ordered():
        body = version.body
        stopped = version.plural == "deployments" and version.name == slot and not body["spec"]["replicas"]
        trainer = is_trainer(version)
        happened = {
            "claimed": version.plural == "jobs" and CLAIM_ANNOTATION in body["metadata"].get("annotations", {}),
            "pod made, gated": trainer and is_gated(body),
            "draining": version.plural == "inferenceengines" and "Draining" in states(version),
            "gate off, tied to the node": trainer and not is_gated(body) and bool(body["spec"].get("nodeSelector")),
            "nominated": trainer and is_bindable(body),
            "slot stopped": stopped,
            "slot's pod going": is_slots_pod(version) and "deletionTimestamp" in body["metadata"],
            "bound": trainer and bool(body["spec"].get("nodeName")),
            "slot started": "slot stopped" in seen
            and version.plural == "deployments"
            and version.name == slot
            and bool(body["spec"]["replicas"]),
        }
        for what, is_so in happened.items():
            if is_so:
                seen.setdefault(what, version.revision)
    return sorted(seen, key=lambda what: seen[what])


async def test_training_pod_refused_by_resource_quota_drains_no_replica(
    scene: ClaimScene, node: str, operator: MakeOperator, kube: Kube
) -> None:
    operator()
    await scene.engine("chat", replicas=2)
    await scene.serves(2)
    quota = {"metadata": {"name": "no-training"}, "spec": {"hard": {"requests.nvidia.com/gpu": "2"}}}
    await kube.call("POST", f"/api/v1/namespaces/{scene.namespace}/resourcequotas", quota)
    await asyncio.sleep(1)  # the quota controller's count, which nothing announces
    await scene.job("tone")
    message = await scene.job_says("tone", "QuotaExceeded")
    assert "nothing is drained" in message
    assert "exceeded quota: no-training" in message
    await scene.history.never(lambda: scene.pod("tone"), "the pod was made", 2)
    _nobody_was_disturbed(scene)


async def test_job_suspended_by_other_drains_no_replica(
    scene: ClaimScene, node: str, operator: MakeOperator, kube: Kube
) -> None:
    operator()
    await scene.engine("chat", replicas=2)
    await scene.serves(2)
    quota = {"metadata": {"name": "wait"}, "spec": {"hard": {"requests.nvidia.com/gpu": "2"}}}
    place = f"/api/v1/namespaces/{scene.namespace}/resourcequotas"
    await kube.call("POST", place, quota)  # so that the other controller is there before the pod
    await asyncio.sleep(1)
    await scene.job("tone")
    (stage_job,) = await scene.history.until(lambda: scene.stage_jobs("tone"), "the claim is made")
    jobs = f"/apis/batch/v1/namespaces/{scene.namespace}/jobs/{stage_job['metadata']['name']}"
    await kube.call("PATCH", jobs, {"spec": {"suspend": True}}, "application/merge-patch+json")
    await kube.call("DELETE", f"{place}/wait")
    message = await scene.job_says("tone", "SuspendedByOther")
    assert stage_job["metadata"]["name"] in message
    await scene.history.never(lambda: scene.lent() or 0 in scene.sizes().values(), "a slot was taken", 3)
    _nobody_was_disturbed(scene)


def _nobody_was_disturbed(scene: ClaimScene) -> None:
    for version in scene.history.ordered("inferenceengines"):
        states = [slot["state"] for slot in version.body.get("status", {}).get("slots", [])]
        assert not {"Draining", "Stopping", "Lent"} & set(states), version.body["status"]
    assert all(d.body["spec"]["replicas"] == 1 for d in scene.history.ordered("deployments"))


@pytest.mark.parametrize("moment", ["draining", "training"])
async def test_deleted_job_returns_its_loan_at_once(
    scene: ClaimScene, node: str, operator: MakeOperator, kube: Kube, moment: str
) -> None:
    operator()
    await scene.engine("chat", replicas=2, drain=60 if moment == "draining" else 0)
    await scene.serves(2)
    await scene.job("tone")
    if moment == "draining":
        await scene.job_says("tone", "Draining")
    else:
        await scene.running("tone")
        await scene.history.until(lambda: scene.lent() == 1, "one slot is lent")
    await kube.call("DELETE", scene.path("finetunejobs", "tone"))
    await scene.history.until(lambda: not scene.stage_jobs("tone"), "its Job is gone")
    await scene.serves(2)
    await scene.history.until(
        lambda: not any("sluice.dev/job" in p["metadata"]["labels"] for p in scene.history.now["pods"].values()),
        "its pods are gone",
    )
    slots = [slot["state"] for slot in scene.status("inferenceengines", "chat")["slots"]]
    await scene.history.until(
        lambda: [s["state"] for s in scene.status("inferenceengines", "chat")["slots"]] == ["Serving", "Serving"],
        f"both slots serve again, not {slots}",
    )
    assert scene.lent() == 0


async def test_suspended_job_returns_its_loan_and_resumes_in_a_new_attempt(
    scene: ClaimScene, node: str, operator: MakeOperator
) -> None:
    operator()
    await scene.engine("chat", replicas=2)
    await scene.serves(2)
    await scene.job("tone")
    await scene.running("tone")
    await scene.patch("finetunejobs", "tone", {"spec": {"suspend": True}})
    await scene.serves(2)
    await scene.job_says("tone", "Suspended")
    await scene.patch("finetunejobs", "tone", {"spec": {"suspend": False}})
    await scene.running("tone", attempt=2)
    await scene.finishes("tone", attempt=2)
    await scene.finishes("tone", Stage.EXPORT)
    await scene.succeeds("tone")
    await scene.serves(2)


async def test_second_job_waits_for_the_first_by_name_and_follows_it(
    scene: ClaimScene, node: str, operator: MakeOperator
) -> None:
    operator()
    await scene.engine("chat", replicas=2)
    await scene.serves(2)
    await scene.job("first")
    await scene.running("first")
    await scene.job("second")
    message = await scene.job_says("second", "EngineAtFloor")
    assert "first" in message
    assert "chat" in message
    await scene.finishes("first")
    await scene.running("second")
    await scene.finishes("second")
    await scene.serves(2)


async def test_queue_order_is_by_priority_then_age(scene: ClaimScene, nodes: Nodes, operator: MakeOperator) -> None:
    await nodes.add(f"{scene.namespace}-one", gpus=1)
    operator()
    await scene.job("holder", "Queue")
    await scene.running("holder")
    for name, priority in (("old", 0), ("young", 0), ("urgent", 5)):
        await scene.job(name, "Queue", priority)
        await scene.job_says(name, "WaitingForGPUs", "BehindInQueue")
        await asyncio.sleep(1.1)  # creation times are whole seconds
    order = ["holder", "urgent", "old", "young"]
    for name in order:
        await scene.finishes(name)
    claimed = [v.body["metadata"]["labels"]["sluice.dev/job"] for v in _first_versions(scene, "jobs", "Train")]
    assert claimed == order


def _first_versions(scene: ClaimScene, plural: str, stage: str) -> list[Version]:
    found: dict[str, Version] = {}
    for version in scene.history.ordered(plural):
        if version.body["metadata"]["labels"].get("sluice.dev/stage") == stage:
            found.setdefault(version.name, version)
    return list(found.values())


async def test_requeued_attempt_keeps_its_loan_for_the_next_attempt(
    scene: ClaimScene, node: str, operator: MakeOperator
) -> None:
    operator()
    await scene.engine("chat", replicas=2)
    await scene.serves(2)
    await scene.job("tone")
    await scene.running("tone")
    (first,) = scene.stage_jobs("tone")
    (slot,) = borrowed_slots([first])
    await scene.finishes("tone", outcome=REQUEUED)
    await scene.running("tone", attempt=2)
    sizes = [d.body["spec"]["replicas"] for d in scene.history.ordered("deployments", slot)]
    stopped = sizes.index(0)
    assert set(sizes[stopped:]) == {0}, "the slot came back between two attempts"
    attempts = scene.status("finetunejobs", "tone")["attempts"]
    assert attempts[0]["reason"] == "Requeued"
    assert attempts[0]["step"] == 7
    await scene.finishes("tone", attempt=2)
    await scene.serves(2)


async def test_lent_gpu_never_goes_to_a_waiting_stranger(
    scene: ClaimScene, node: str, operator: MakeOperator, kube: Kube
) -> None:
    operator()
    await scene.engine("chat", replicas=2)
    await scene.serves(2)
    for number in range(5):
        await kube.call("POST", f"/api/v1/namespaces/{scene.namespace}/pods", _thief(f"thief-{number}"))
    await scene.history.until(
        lambda: sum(_is_unschedulable(p) for p in scene.history.now["pods"].values()) == 5, "the thieves wait"
    )
    await scene.job("tone")
    await scene.running("tone")
    thefts = [v.name for v in scene.history.ordered("pods") if "thief" in v.name and v.body["spec"].get("nodeName")]
    assert thefts == []


def _thief(name: str) -> dict[str, object]:
    resources = {"limits": {"nvidia.com/gpu": "1"}}
    return {
        "metadata": {"name": name, "labels": {"thief": name}},
        "spec": {"containers": [{"name": "main", "image": "nothing", "resources": resources}], "priority": 0},
    }


def _is_unschedulable(pod: dict[str, object]) -> bool:
    status = pod["status"]
    assert isinstance(status, dict)
    return any(c.get("reason") == "Unschedulable" for c in status.get("conditions", []))


async def test_unchanged_world_causes_no_writes(scene: ClaimScene, node: str, operator: MakeOperator) -> None:
    """With a loan under way, a job that waits, one that is prepared and one that is done."""
    running = operator(resync_seconds=1)
    await scene.engine("chat", replicas=2)
    await scene.serves(2)
    await scene.job("done")
    await scene.finishes("done")
    await scene.finishes("done", Stage.EXPORT)
    await scene.succeeds("done")
    await scene.job("holder")
    await scene.running("holder")
    await scene.job("waiting")
    await scene.job_says("waiting", "EngineAtFloor")
    await scene.job("new", prepared=False)
    await scene.running("new", Stage.PREPARE)
    await scene.history.until(lambda: scene.lent() == 1, "one slot is lent")
    before = await scene.settles()
    await scene.rounds(4)
    assert [str(w) for w in scene.writes()[len(before) :]] == []
    assert running.events("reconcile failed") == []


async def test_ready_slots_never_fall_below_the_floor(scene: ClaimScene, nodes: Nodes, operator: MakeOperator) -> None:
    """Four jobs, an engine of four slots with a floor of two: two lend, two wait their turn."""
    await nodes.add(f"{scene.namespace}-four", gpus=4)
    operator()
    await scene.engine("chat", replicas=4, floor=2)
    await scene.serves(4)
    names = ["a", "b", "c", "d"]
    for name in names:
        await scene.job(name)
    done: set[str] = set()
    while len(done) < 4:
        name = await scene.history.until(
            lambda: next((n for n in names if n not in done and _runs(scene, n)), None), "the next job trains"
        )
        await scene.finishes(name)
        done.add(name)
    await scene.serves(4)
    assert min(_ready_over_time(scene)) >= 2


def _runs(scene: ClaimScene, job: str) -> bool:
    pod = scene.pod(job)
    return bool(pod and pod["status"]["phase"] == "Running")


def _ready_over_time(scene: ClaimScene) -> list[int]:
    """How many slots were ready, from the moment at which all were."""
    ready: set[str] = set()
    counts: list[int] = []
    for version in scene.history.ordered("pods"):
        if not is_slot(version.body, "chat"):
            continue
        if is_ready(version.body) and not version.gone:
            ready.add(version.name)
        else:
            ready.discard(version.name)
        if counts or len(ready) == 4:
            counts.append(len(ready))
    return counts
