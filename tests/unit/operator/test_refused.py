"""What the API server refuses to make for one job costs that job its turn, and nobody else's."""

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest

from dev.simulate.builder import NOW, PREPARED, WorldBuilder
from sluice_api.claim import AttemptOutcome
from sluice_api.finetunejob import FineTuneJob
from sluice_api.stages import Stage
from sluice_operator.cluster.cluster import Cluster
from sluice_operator.cluster.errors import ApiError, Gone, NameTaken, NotLeading, Outdated
from sluice_operator.facts.outcomes import recorded
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import job_key, pool_key
from sluice_operator.reconcile.context import Context
from sluice_operator.reconcile.job import reconcile_job
from sluice_operator.reconcile.pool import reconcile_pool
from sluice_operator.settings import Settings

SETTINGS = Settings(namespace="s", pod_name="p", report_url="http://x", trainer_image="t", server_image="v")
QUOTA = ApiError(403, "Forbidden", 'jobs.batch "x" is forbidden: exceeded quota: jobs, requested: count/jobs.batch=1')
WEBHOOK = ApiError(400, "BadRequest", 'admission webhook "labels" denied the request: no cost centre')
WEBHOOK_IS_AWAY = ApiError(500, "InternalError", 'failed calling webhook "labels": context deadline exceeded')
AWAY = ApiError(503, "ServiceUnavailable", "later")


class Refusing(Cluster):
    """An API server that makes nothing in the namespace `evil`."""

    def __init__(self, builder: WorldBuilder, error: Exception) -> None:
        self.builder, self.error = builder, error
        self._kept = {}
        self.made: list[str] = []
        self.told: list[str] = []
        self.statuses: dict[str, Any] = {}

    @property
    def term(self) -> int:
        return 1

    async def require(self, key: Key, uid: str) -> None:
        if key.namespace == "late":
            raise Gone(f"{key} with uid {uid} is not there any more")

    async def apply(self, manifest: dict[str, Any]) -> dict[str, Any]:
        return manifest

    async def create(self, manifest: dict[str, Any]) -> dict[str, Any]:
        if manifest["metadata"]["namespace"] == "evil":
            raise self.error
        self.made.append(manifest["metadata"]["name"])
        return {**manifest, "metadata": {**manifest["metadata"], "uid": "x"}}

    async def annotate(self, key: Key, uid: str, annotations: dict[str, str]) -> dict[str, Any]:
        job = self.builder.world.jobs[key]
        assert job.metadata.uid == uid
        self.builder.version += 1
        changes = {"annotations": annotations, "resource_version": str(self.builder.version)}
        self.builder.put(job.model_copy(update={"metadata": job.metadata.model_copy(update=changes)}))
        return {}

    async def apply_status(self, key: Key, uid: str, status: dict[str, Any]) -> None:
        assert uid
        self.statuses[key.name] = status

    async def event(self, key: Key, uid: str, level: str, reason: str, message: str) -> None:
        assert uid
        assert message
        self.told.append(f"{level} {key.name} {reason}")


def pool_decides(builder: WorldBuilder, cluster: Refusing) -> timedelta | None:
    return asyncio.run(reconcile_pool(pool_key("default"), Context(builder.store, cluster, SETTINGS), NOW))


def crowd(gpus: int, *namespaces: str) -> tuple[WorldBuilder, list[FineTuneJob]]:
    """Prepared jobs a, b, ... in their order, before a pool of so many GPUs."""
    builder = WorldBuilder()
    builder.pool()
    builder.node(gpus)
    return builder, [builder.job("abcdefgh"[i], 1, namespace) for i, namespace in enumerate(namespaces)]


def last_attempt(builder: WorldBuilder, job: FineTuneJob) -> AttemptOutcome:
    key = job_key(job.metadata.namespace, job.metadata.name)
    return recorded(builder.world.jobs[key]).of(Stage.TRAIN)[-1]


@pytest.mark.parametrize(
    ("error", "reason"),
    [(QUOTA, "QuotaExceeded"), (WEBHOOK, "RefusedByAdmission"), (NameTaken("Job x is there"), "NameTaken")],
)
def test_gpu_of_a_refused_job_goes_to_the_next_in_the_same_decision(error: ApiError, reason: str) -> None:
    builder, jobs = crowd(1, "evil", "evil", "team", "team")
    cluster = Refusing(builder, error)
    pool_decides(builder, cluster)
    assert cluster.made == ["c-jobcteam-train-1"]
    assert cluster.statuses["default"]["waiting"] == 1, "d waits: the status is written though something was refused"
    for job in jobs[:2]:
        outcome = last_attempt(builder, job)
        assert (outcome.reason, outcome.message, outcome.ended_at) == (reason, error.message, NOW)


def test_passing_failure_is_tried_again_and_stops_no_other_job() -> None:
    builder, jobs = crowd(2, "evil", "team")
    cluster = Refusing(builder, AWAY)
    with pytest.raises(ApiError, match="later"):
        pool_decides(builder, cluster)
    assert cluster.made == ["b-jobbteam-train-1"]
    assert "default" in cluster.statuses
    assert not recorded(builder.world.jobs[job_key("evil", "a")]).of(Stage.TRAIN), "it may have been made all the same"
    assert jobs


def test_outdated_object_of_a_job_delays_no_other_job() -> None:
    """Under the names of its Job and of its pod that asks for a node, as of a job before it, again and again.

    Each time the whole pool waited for the end of a back-off of up to 30 s.
    """
    builder, _ = crowd(1, "evil", "team")
    builder.job("x", 1, "evil", scheduling={"policy": "Queue", "priority": 9, "scaleUpFirst": {}})
    cluster = Refusing(builder, Outdated("Job x is still that of the FineTuneJob x before"))
    again = pool_decides(builder, cluster)
    assert cluster.made == ["b-jobbteam-train-1"]
    assert again
    assert again <= timedelta(seconds=10)


def test_stage_job_is_not_made_for_a_job_deleted_meanwhile() -> None:
    """Its Job's is not: what it had claimed looks free."""
    builder, _ = crowd(1, "late", "team")
    cluster = Refusing(builder, AWAY)
    pool_decides(builder, cluster)
    assert cluster.made == ["b-jobbteam-train-1"]


def test_outdated_scale_up_pod_delays_no_other_job() -> None:
    builder, _ = crowd(1)
    builder.job("x", 2, "evil", scheduling={"policy": "Queue", "scaleUpFirst": {}})
    cluster = Refusing(builder, Outdated("Pod x is still that of the FineTuneJob x before"))
    pool_decides(builder, cluster)
    assert "default" in cluster.statuses


def test_scale_up_pod_that_cannot_be_made_is_tried_again_soon() -> None:
    builder, _ = crowd(1)
    builder.job("x", 2, "evil", scheduling={"policy": "Queue", "scaleUpFirst": {}})
    cluster = Refusing(builder, AWAY)
    again = pool_decides(builder, cluster)
    assert again is not None
    assert again <= timedelta(seconds=10)
    assert "default" in cluster.statuses


def test_pool_decides_nothing_when_not_leading() -> None:
    builder, _ = crowd(1, "evil", "team")
    cluster = Refusing(builder, NotLeading("another leads"))
    with pytest.raises(NotLeading):
        pool_decides(builder, cluster)
    assert (cluster.made, cluster.statuses) == ([], {})


def job_decides(builder: WorldBuilder, cluster: Refusing, name: str = "a", after: int = 0) -> timedelta | None:
    now = NOW + timedelta(seconds=after)
    return asyncio.run(reconcile_job(job_key("evil", name), Context(builder.store, cluster, SETTINGS), now))


def condition(cluster: Refusing, kind: str) -> tuple[str, str]:
    found = next(c for c in cluster.statuses["a"]["conditions"] if c["type"] == kind)
    return found["reason"], found["message"]


def test_refused_prepare_quotes_the_api_server_and_the_next_attempt() -> None:
    builder, _ = crowd(1)
    builder.job("a", 1, "evil", outcomes=())
    cluster = Refusing(builder, QUOTA)
    job_decides(builder, cluster)
    assert condition(cluster, "Prepared") == ("QuotaExceeded", QUOTA.message)
    assert cluster.told == ["Warning a QuotaExceeded"]
    job_decides(builder, cluster)
    message = condition(cluster, "Prepared")[1]
    assert message.startswith(f"Attempt 1 ended: {QUOTA.message} The next one follows at 12:00:10 UTC")
    cluster.error = AWAY
    job_decides(builder, cluster, after=9)
    with pytest.raises(ApiError, match="later"):
        job_decides(builder, cluster, after=10)
    assert condition(cluster, "Prepared")[0] == "Preparing", "what goes on is told, whatever fails"


class RefusesRecords(Refusing):
    """It changes no FineTuneJob either; a status it takes, as most webhooks are not asked about those."""

    async def annotate(self, key: Key, uid: str, annotations: dict[str, str]) -> dict[str, Any]:
        raise self.error


def test_refusal_that_cannot_be_recorded_is_tried_again() -> None:
    """A webhook that is away comes back, and tells nobody."""
    builder, _ = crowd(1, "evil")
    builder.job("a", 1, "evil", outcomes=())
    builder.job("b", 1, "evil")
    cluster = RefusesRecords(builder, WEBHOOK_IS_AWAY)
    assert job_decides(builder, cluster) == timedelta(seconds=10)
    assert condition(cluster, "Prepared")[0] == "RefusedByAdmission"
    job = builder.job("a", 1, "evil", outcomes=())
    builder.version += 1
    metadata = job.metadata.model_copy(update={"resource_version": str(builder.version)})
    told = job.status.model_validate(cluster.statuses["a"])
    builder.put(job.model_copy(update={"status": told, "metadata": metadata}))
    assert job_decides(builder, cluster, after=9000) == timedelta(minutes=1), "however long it has not been prepared"
    again = pool_decides(builder, cluster)
    assert again == timedelta(seconds=10)


def test_refused_adapter_is_tried_again_after_a_doubled_pause() -> None:
    builder, _ = crowd(1)
    builder.engine("chat", 1, "evil")
    exported = json.dumps({"uri": "pvc://adapters/x", "digest": "sha256:" + "0" * 64, "rank": 16, "sizeBytes": 1})
    ended = [
        PREPARED,
        AttemptOutcome(stage=Stage.TRAIN, attempt=1, reason="Done", ended_at=NOW),
        AttemptOutcome.model_validate(
            {"stage": "Export", "attempt": 1, "reason": "Done", "endedAt": NOW, "export": json.loads(exported)}
        ),
    ]
    job = builder.job("a", 1, "evil", outcomes=tuple(ended), publish={"engine": "chat", "name": "tone"})

    class RefusesAdapters(Refusing):
        async def apply(self, manifest: dict[str, Any]) -> dict[str, Any]:
            assert manifest["kind"] == "Adapter"
            raise self.error

    cluster = RefusesAdapters(builder, WEBHOOK)
    assert job_decides(builder, cluster) == timedelta(seconds=10)
    assert condition(cluster, "Published") == ("RefusedByAdmission", WEBHOOK.message)
    status = job.status.model_validate(cluster.statuses["a"])
    builder.version += 1
    metadata = job.metadata.model_copy(update={"resource_version": str(builder.version)})
    builder.put(job.model_copy(update={"status": status, "metadata": metadata}))
    cluster.statuses.clear()
    assert job_decides(builder, cluster, after=300) == timedelta(seconds=300)
    assert cluster.statuses == {}, "nothing is new"
    assert job_decides(builder, cluster, after=9000) == timedelta(hours=1)
    assert cluster.told == ["Warning a RefusedByAdmission"]
