"""Who may report what: tokens minted by a real API server for real pods, and what is written for them."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from dev.cluster.control_plane import ControlPlane
from sluice_api.finetunejob import FineTuneJob
from sluice_api.meta import API_VERSION, FIELD_MANAGER, PROGRESS_FIELD_MANAGER
from sluice_operator.cluster.errors import Gone
from sluice_operator.observe.world import engine_key, identity, job_key, key_of
from tests.integration.progress_scene import SLUICE, Body, Scene, make_namespace, scene

pytestmark = pytest.mark.integration


@pytest.fixture
async def here(control_plane: ControlPlane) -> AsyncIterator[Scene]:
    async with scene(control_plane) as made:
        yield made


def training(sequence: int, step: int = 1, *, attempt: int = 1, **more: Any) -> Body:
    return {
        "attempt": attempt,
        "sequence": sequence,
        "activity": "Training",
        "step": step,
        "totalSteps": 300,
        "epoch": 0.5,
        "loss": 2.34567,
        **more,
    }


def engine_state(sequence: int) -> Body:
    return {"sequence": sequence, "serving": True, "draining": False, "inFlight": 3}


async def nothing_written(here: Scene, job: FineTuneJob) -> None:
    """Not now, and not together with the next write either: that one shows only what the job's own pod says."""
    stored = await here.stored(job.metadata.name)
    assert stored["metadata"]["resourceVersion"] == job.metadata.resource_version
    assert "status" not in stored or "progress" not in stored["status"]
    assert job_key(here.namespace, job.metadata.name) not in here.woken


async def test_report_of_the_jobs_own_pod_is_accepted(here: Scene) -> None:
    job = await here.job("tone")
    pod = await here.stage_pod(job)
    await here.refresh()
    async with here.serving():
        assert await here.post(await here.token(pod), training(1, step=120)) == (202, "")
        stored = await here.written("tone", "120/300")
    progress = stored["status"]["progress"]
    assert (progress["epoch"], progress["loss"], progress["attempt"]) == ("0.50", "2.3457", 1)
    assert here.woken == [job_key(here.namespace, "tone")]
    (stage_job,) = here.store.world().stage_jobs_of[identity(job)].values()
    assert here.store.world().heartbeats[stage_job.uid].attempt == 1


async def test_report_writes_progress_only(here: Scene) -> None:
    job = await here.job("tone")
    conditions = [
        {"type": "Prepared", "status": "True", "reason": "Done", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    ]
    await here.apply_status(job, {"summary": "Training", "attempt": 1, "conditions": conditions})
    pod = await here.stage_pod(job)
    await here.refresh()
    async with here.serving():
        token = await here.token(pod)
        assert await here.post(token, training(1, step=1)) == (202, "")
        await here.written("tone", "1/300")
        await here.apply_status(job, {"summary": "Exporting", "attempt": 2, "conditions": conditions})
        assert await here.post(token, training(2, step=2, checkpointStep=2)) == (202, "")
        stored = await here.written("tone", "2/300")
    status = stored["status"]
    assert (status["summary"], status["attempt"], len(status["conditions"])) == ("Exporting", 2, 1)
    owned = {
        entry["manager"]: entry["fieldsV1"]["f:status"]
        for entry in stored["metadata"]["managedFields"]
        if entry.get("subresource") == "status"
    }
    assert set(owned[PROGRESS_FIELD_MANAGER]) == {"f:progress"}
    assert "f:secondsLeft" not in owned[PROGRESS_FIELD_MANAGER]["f:progress"], "what is not known is not written"
    assert "f:progress" not in owned[FIELD_MANAGER]


async def test_pod_with_forged_labels_and_owner_is_refused(here: Scene) -> None:
    victim = await here.job("victim")
    real = await here.stage_pod(victim)
    await here.bind(real)  # of two pods, the Job controller takes the one without a node away
    owner = real["metadata"]["ownerReferences"][0]
    forged = await here.forged_pod(here.namespace, "zz-forged", real["metadata"]["labels"], owner)
    token = await here.token(forged)
    await here.refresh()
    async with here.serving():
        assert await here.post(token, training(1, step=299)) == (403, "other_jobs_pod")
        await nothing_written(here, victim)
        assert await here.post(await here.token(real), training(1, step=7)) == (202, "")
        await here.written("victim", "7/300")


async def test_pod_with_forged_labels_is_not_a_trainer(here: Scene) -> None:
    victim = await here.job("victim")
    real = await here.stage_pod(victim)
    forged = await here.forged_pod(here.namespace, "forged", real["metadata"]["labels"], None)
    token = await here.token(forged)
    await here.refresh()
    async with here.serving():
        assert await here.post(token, training(1)) == (403, "not_a_trainer")
        await nothing_written(here, victim)


async def test_pod_with_forged_owner_is_refused(here: Scene) -> None:
    """The Job controller lets go of a pod that its selector does not match; until then its owner says the Job."""
    victim = await here.job("victim")
    real = await here.stage_pod(victim)
    labels = {"sluice.dev/job": "victim"}
    forged = await here.forged_pod(here.namespace, "forged", labels, real["metadata"]["ownerReferences"][0])
    token = await here.token(forged)
    await here.refresh()
    async with here.serving():
        status, error = await here.post(token, training(1))
        assert status == 403
        assert error in {"other_jobs_pod", "not_a_trainer"}
        await nothing_written(here, victim)


async def test_a_pod_of_another_namespace_is_refused(here: Scene) -> None:
    victim = await here.job("victim")
    real = await here.stage_pod(victim)
    elsewhere = f"{here.namespace}-b"
    await make_namespace(here.kube, elsewhere)
    owner = real["metadata"]["ownerReferences"][0]
    forged = await here.forged_pod(elsewhere, real["metadata"]["name"], real["metadata"]["labels"], owner)
    token = await here.token(forged)
    await here.refresh()
    async with here.serving():
        assert await here.post(token, training(1)) == (403, "not_a_trainer")
        await nothing_written(here, victim)


async def test_pod_of_a_stage_job_with_another_name_is_refused(here: Scene) -> None:
    """A Job that anybody makes with our labels and owner, but not under the name that we would give."""
    victim = await here.job("victim")
    own = await here.stage_pod(victim)
    jobs = f"/apis/batch/v1/namespaces/{here.namespace}/jobs"
    job = await here.kube.call("GET", f"{jobs}/{own['metadata']['ownerReferences'][0]['name']}")
    template = job["spec"]["template"]
    template["metadata"]["labels"] = {"sluice.dev/job": "victim"}
    body = {
        "metadata": {**{part: job["metadata"][part] for part in ("labels", "ownerReferences")}, "name": "mine"},
        "spec": {"template": template},
    }
    made = await here.kube.call("POST", jobs, body)
    pod = await here.pod_of(made["metadata"]["uid"])
    await here.refresh()
    async with here.serving():
        assert await here.post(await here.token(pod), training(1)) == (403, "other_jobs_pod")
        await nothing_written(here, victim)


async def test_deleted_pod_is_refused_with_a_token_accepted_before(here: Scene) -> None:
    job = await here.job("tone")
    pod = await here.stage_pod(job)
    token, unused = await here.token(pod), await here.token(pod)
    await here.refresh()
    async with here.serving():
        assert await here.post(token, training(1, step=1)) == (202, "")
        before = await here.written("tone", "1/300")
        await here.delete_pod(pod)
        await here.refresh()
        assert await here.post(token, training(2, step=2, checkpointStep=2)) == (403, "deleted_pod")
        assert await here.post(unused, training(2, step=2, checkpointStep=2)) == (401, "invalid_token")
    assert (await here.stored("tone"))["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


async def test_report_of_a_terminating_pod_is_accepted(here: Scene) -> None:
    job = await here.job("tone")
    pod = await here.stage_pod(job, keep=True)
    token = await here.token(pod)
    await here.delete_pod(pod)
    await here.refresh()
    async with here.serving():
        assert await here.post(token, training(1, step=44, checkpointStep=44)) == (202, "")
        stored = await here.written("tone", "44/300")
    assert stored["status"]["progress"]["checkpointStep"] == 44


async def test_pod_of_a_recreated_job_is_refused(here: Scene) -> None:
    old = await here.job("tone")
    pod = await here.stage_pod(old, keep=True)
    token = await here.token(pod)
    await here.kube.call("DELETE", f"{SLUICE}/namespaces/{here.namespace}/finetunejobs/tone")
    new = await here.job("tone")
    await here.refresh()
    async with here.serving():
        assert await here.post(token, training(1)) == (403, "recreated_job")
        await nothing_written(here, new)


async def test_progress_of_a_deleted_job_is_not_written_to_its_successor(here: Scene) -> None:
    """The store has not seen the deletion yet."""
    old = await here.job("tone")
    pod = await here.stage_pod(old, keep=True)
    token = await here.token(pod)
    await here.refresh()
    await here.kube.call("DELETE", f"{SLUICE}/namespaces/{here.namespace}/finetunejobs/tone")
    new = await here.job("tone")
    async with here.serving():
        assert await here.post(token, training(1)) == (202, "")
        path = f"{SLUICE}/namespaces/{here.namespace}/finetunejobs/tone"
        with pytest.raises(Gone):
            await here.cluster.apply_progress(key_of(old), old.metadata.uid, {"step": 1})
        stored = await here.kube.call("GET", path)
    assert stored["metadata"]["resourceVersion"] == new.metadata.resource_version


async def test_progress_is_written_after_other_status_writes(here: Scene) -> None:
    job = await here.job("tone")
    for attempt in (1, 2):
        await here.apply_status(job, {"summary": "Training", "attempt": attempt})
    await here.cluster.apply_progress(key_of(job), job.metadata.uid, {"step": 7, "percent": "7/300"})
    assert (await here.written("tone", "7/300"))["status"]["attempt"] == 2


async def test_token_of_another_audience_or_without_pod_is_refused(here: Scene) -> None:
    job = await here.job("tone")
    pod = await here.stage_pod(job)
    await here.refresh()
    async with here.serving():
        other_audience = await here.token(pod, audience="vault")
        assert await here.post(other_audience, training(1)) == (401, "wrong_audience")
        assert await here.post(await here.token(pod, bound=False), training(1)) == (403, "unbound_token")
        assert await here.post("a.b.c", training(1)) == (401, "invalid_token")
        assert await here.post("nothing", training(1)) == (401, "invalid_token")
        assert await here.post("", training(1)) == (401, "no_token")
        await nothing_written(here, job)


async def test_a_report_is_accepted_once_and_in_order(here: Scene) -> None:
    job = await here.job("tone")
    pod = await here.stage_pod(job)
    token = await here.token(pod)
    await here.refresh()
    async with here.serving():
        assert await here.post(token, training(5, step=50)) == (202, "")
        before = await here.written("tone", "50/300")
        assert await here.post(token, training(5, step=50)) == (409, "stale_sequence")
        assert await here.post(token, training(4, step=40, checkpointStep=40)) == (409, "stale_sequence")
        assert await here.post(token, training(6, attempt=2, step=60)) == (409, "other_attempt")
        stored = await here.stored("tone")
        assert stored["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
        assert await here.post(token, training(6, step=60, checkpointStep=60)) == (202, "")
        await here.written("tone", "60/300")


async def test_fenced_attempt_is_refused_also_after_a_restart(here: Scene) -> None:
    job = await here.job("tone")
    tokens = [await here.token(await here.stage_pod(job, attempt)) for attempt in (1, 2)]
    await here.refresh()
    async with here.serving():
        assert await here.post(tokens[0], training(9, step=9)) == (409, "fenced_attempt")
        assert await here.post(tokens[1], training(3, attempt=2, step=30)) == (202, "")
        await here.written("tone", "30/300")
    second = next(j for j in here.store.world().stage_jobs_of[identity(job)].values() if j.attempt == 2)
    path = f"/apis/batch/v1/namespaces/{here.namespace}/jobs/{second.key.name}"
    await here.kube.call("DELETE", path, {"propagationPolicy": "Background"})
    await here.refresh()
    async with here.serving():
        assert await here.post(tokens[0], training(10, step=10)) == (409, "fenced_attempt")


async def test_report_is_refused_while_not_leading(here: Scene) -> None:
    job = await here.job("tone")
    pod = await here.stage_pod(job)
    await here.refresh()
    here.leads = False
    async with here.serving():
        assert await here.post(await here.token(pod), training(1)) == (503, "not_leading")
        await nothing_written(here, job)


async def test_pod_missing_from_the_store_is_looked_up(here: Scene) -> None:
    job = await here.job("tone")
    pod = await here.stage_pod(job)
    await here.refresh()
    known = next(p for p in here.store.world().pods.values() if p.uid == pod["metadata"]["uid"])
    here.store.remove(known.key, known.uid)
    async with here.serving():
        assert await here.post(await here.token(pod), training(1, step=3)) == (202, "")
        await here.written("tone", "3/300")


async def test_engine_report_is_accepted_from_its_own_pod_only(here: Scene) -> None:
    pod = await here.engine_pod("chat")
    await here.bind(pod)  # of two pods, the ReplicaSet controller takes the one without a node away
    trainer = await here.stage_pod(await here.job("tone"))
    labels, owner = pod["metadata"]["labels"], pod["metadata"]["ownerReferences"][0]
    unmatched = {name: value for name, value in labels.items() if name != "pod-template-hash"}
    second = await here.forged_pod(here.namespace, "zz-second", labels, owner)
    ownerless = await here.forged_pod(here.namespace, "zz-unmatched", unmatched, owner)
    tokens = [await here.token(p) for p in (pod, trainer, second, ownerless)]
    await here.refresh()
    async with here.serving():
        assert await here.post_engine(tokens[1], engine_state(1)) == (403, "not_an_engine")
        assert await here.post_engine(tokens[2], engine_state(1)) == (403, "other_engines_pod")
        assert await here.post_engine(tokens[3], engine_state(1)) == (403, "not_an_engine")
        assert await here.post(tokens[0], training(1)) == (403, "not_a_trainer")
        assert (here.woken, dict(here.store.world().reports)) == ([], {})
        assert await here.post_engine(tokens[0], engine_state(2)) == (202, "")
        assert await here.post_engine(tokens[0], engine_state(2)) == (409, "stale_sequence")
        assert await here.post_engine(tokens[0], engine_state(1)) == (409, "stale_sequence")
    assert here.woken == [engine_key(here.namespace, "chat")]
    assert here.store.world().reports[pod["metadata"]["uid"]].report.in_flight == 3


async def test_pod_of_a_recreated_engine_is_refused(here: Scene) -> None:
    pod = await here.engine_pod("chat", keep=True)
    token = await here.token(pod)
    path = f"{SLUICE}/namespaces/{here.namespace}/inferenceengines"
    await here.kube.call("DELETE", f"{path}/chat")
    spec = {"model": {"uri": "pvc://models/tiny"}}
    body = {"apiVersion": API_VERSION, "kind": "InferenceEngine", "metadata": {"name": "chat"}, "spec": spec}
    await here.kube.call("POST", path, body)
    await here.refresh()
    async with here.serving():
        assert await here.post_engine(token, engine_state(1)) == (403, "recreated_engine")
    assert here.woken == []
