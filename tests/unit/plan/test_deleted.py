"""What a deleted job leaves running is ended, and counts until it is gone."""

from typing import Any

import pytest

from dev.simulate.cluster import Cluster
from sluice_api.meta import ATTEMPT_LABEL, JOB_LABEL, STAGE_LABEL
from sluice_api.reasons import Reason
from sluice_operator.facts.nodes import find_pool
from sluice_operator.observe.orphans import left_by, runs
from sluice_operator.observe.views import Key, Owner, PodView, StageJobView
from sluice_operator.observe.world import key_of
from sluice_operator.status.pool import pool_usage
from tests.unit.plan.worlds import NOW, allocated, describe

TEAM = {"matchLabels": {"kubernetes.io/metadata.name": "team"}}
QUOTA_OF_ONE: dict[str, Any] = {"quotas": [{"namespaces": TEAM, "maxGPUs": 1}]}


@pytest.mark.parametrize("how", ["kept by a finalizer", "without its children"])
def test_training_of_a_deleted_job_counts_until_its_pods_are_gone(how: str) -> None:
    cluster = Cluster()
    cluster.builder.pool(**QUOTA_OF_ONE)
    cluster.builder.node(4)
    job = cluster.builder.job("one")
    for _ in range(4):
        cluster.round()
    cluster.builder.job("two")
    pool = find_pool(cluster.world, "default")
    assert pool is not None
    delete = cluster.delete_job_that_is_kept if how == "kept by a finalizer" else cluster.orphan
    delete(cluster.world.jobs[key_of(job)])
    assert pool_usage(cluster.world, pool).training == 1, "it still runs"
    assert describe(allocated(cluster.builder)) == "two waits NamespaceQuota"
    if how == "kept by a finalizer":
        cluster.reconcile_job(cluster.world.jobs[key_of(job)])
        assert cluster.world.jobs[key_of(job)].status.summary == Reason.DELETED
    cluster.reconcile(key_of(job))
    assert [stage_job.deleting for stage_job in cluster.world.claiming.values()] == [True]
    assert describe(allocated(cluster.builder)) == "two waits NamespaceQuota", "until its pod is gone"
    for _ in range(3):
        cluster.controllers()
        cluster.kubelet()
    assert pool_usage(cluster.world, pool).training == 0
    assert describe(allocated(cluster.builder)) == "two takes n1"


def test_finished_job_keeps_its_status_while_a_finalizer_holds_it() -> None:
    """Seen in the stories: the status no longer said that the job had finished."""
    cluster = Cluster()
    cluster.builder.pool()
    cluster.builder.node(1)
    key = key_of(cluster.builder.job("one"))
    for _ in range(4):
        cluster.round()
    (trainer,) = (pod for pod in cluster.world.pods.values() if pod.labels.get(STAGE_LABEL) == "Train")
    cluster.end_training(trainer, 1, "OutOfMemory")
    for _ in range(4):
        cluster.round()
    before = cluster.world.jobs[key].status
    assert before.finished_at is not None
    cluster.delete_job_that_is_kept(cluster.world.jobs[key])
    cluster.pass_time(60)
    cluster.reconcile_job(cluster.world.jobs[key])
    after = cluster.world.jobs[key].status
    assert (after.summary, after.finished_at) == (before.summary, before.finished_at)


UID = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
LABELS = {JOB_LABEL: "one", STAGE_LABEL: "Train", ATTEMPT_LABEL: "2"}
MINE = Owner("FineTuneJob", "one", UID)


def seen(name: str = "one-0a1b2c3d-train-2", **changes: Any) -> StageJobView:
    common: dict[str, Any] = {"uid": "u", "resource_version": 1, "created": NOW, "stage": "Train", "attempt": 2}
    return StageJobView(key=Key("Job", "team", name), **{**common, "labels": LABELS, **changes})


def pod(name: str = "one-0a1b2c3d-train-2-abcde", **changes: Any) -> PodView:
    common: dict[str, Any] = {"uid": "u", "resource_version": 1, "created": NOW, "requests": {}, "labels": LABELS}
    return PodView(key=Key("Pod", "team", name), **{**common, **changes})


LONG = {**LABELS, JOB_LABEL: "j" * 63, ATTEMPT_LABEL: "1000000"}
HAND_MADE = Owner("Job", "hand-made", "h")
ITS_JOB = Owner("Job", "one-0a1b2c3d-train-2", "u")


@pytest.mark.parametrize(
    ("rule", "view", "orphan"),
    [
        ("it has its job", seen(owner=MINE), False),
        ("the garbage collector sees to one whose job is gone", seen(owner=Owner("FineTuneJob", "one", "gone")), False),
        ("nobody owns it", seen(), True),
        ("somebody gave it to another job", seen(owner=Owner("FineTuneJob", "two", UID)), True),
        ("or to something else of the same name", seen(owner=Owner("ConfigMap", "one", "c")), True),
        ("a Job that a person has labelled so", seen("backup-27001", owner=None), False),
        ("or named so, for another job", seen("two-0a1b2c3d-train-2"), False),
        ("or for another attempt", seen("one-0a1b2c3d-train-3"), False),
        ("without a stage", seen(labels={JOB_LABEL: "one"}), False),
        ("a pod has its Job", pod(owner=ITS_JOB), False),
        ("a pod whose Job was deleted without it", pod(), True),
        ("a pod of several", pod("one-0a1b2c3d-train-2-13-abcde"), True),
        ("a pod that a person has made a Job of his own adopt", pod(owner=HAND_MADE), True),
        ("a pod whose name had to be cut", pod(f"{'j' * 37}-0a1b2c3d-train-1-13-abcde", labels=LONG), True),
        ("a pod that a person has labelled so", pod("backup-abcde"), False),
        ("a pod that somebody gives days to end", pod(owner=ITS_JOB, deleting=True, in_time=30), True),
    ],
)
def test_orphaned_jobs_and_pods_are_recognized(rule: str, view: StageJobView | PodView, orphan: bool) -> None:
    assert left_by(view) == ((("team", view.labels[JOB_LABEL]),) if orphan else ()), rule


def test_ended_or_terminating_orphan_is_left_alone() -> None:
    assert runs(seen())
    assert runs(pod())
    assert runs(pod(deleting=True, in_time=30)), "it is given less"
    assert not any(
        runs(view) for view in (seen(deleting=True), seen(finished="Complete"), pod(ended=True), pod(deleting=True))
    )
