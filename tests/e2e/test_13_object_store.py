"""J13: a team without any volume. Its model, its rows and its results are on S3, and its engine serves from there.

Seen to fail when no checkpoint was looked for in the store, and when a Secret's value was in a trainer's environment.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.e2e import objects, processes
from tests.e2e.kubectl import Kubectl, Object
from tests.e2e.on_s3 import JOB, MODEL, RESULTS, ROW_COUNT, ROWS, at, changed, example, upload
from tests.e2e.sluice import SYSTEM, Sluice
from tests.e2e.stage import GPU_ON_S3, ON_S3, STORE
from tests.e2e.store import store_in_cluster
from tests.e2e.team import LONG, RESTRICTED, JobState, Team
from tests.object_store import ObjectStore

QUESTION = "Where is parcel 7?"
GPUS = 8
"""Enough for all that is there at once: nothing waits for what another journey proves."""
OTHER_SECRET = "a-canary-that-is-not-the-key-01234567"
_SECOND = 2
MENDED_JOB, MENDED_ENGINE = "wrong-key", "wrong-key-too"


@dataclass(frozen=True)
class Wrong:
    """The example's job or engine with one address that can't be had."""

    kind: str
    name: str
    spec: Object
    reason: str
    says: tuple[str, ...]
    """Where, what, and what to do."""

    @property
    def condition(self) -> str:
        """Which tells."""
        return "Succeeded" if self.kind == "ftj" else "Ready"


_KEY = ("that the credentials are wrong", "AWS_SECRET_ACCESS_KEY does not belong to", "Correct the Secret wrong.")
_NO_SECRET = ("Secret nowhere is not in this namespace", "kubectl create secret generic nowhere --from-literal=AWS_")
_NO_BUCKET = ("has no bucket s3://nowhere. Correct the address, or create it.",)
TABLE = (
    Wrong("ftj", MENDED_JOB, {"model": at(MODEL, "wrong")}, "AccessRefused", (f"model.uri {MODEL}", *_KEY)),
    Wrong("ftj", "no-secret", {"dataset": at(ROWS, "nowhere")}, "AccessRefused", (f"dataset.uri {ROWS}", *_NO_SECRET)),
    Wrong(
        *("ftj", "no-bucket", {"output": at("s3://nowhere/x", "store")}),
        *("OutputNotWritable", ("output.uri s3://nowhere/x/no-bucket", *_NO_BUCKET)),
    ),
    Wrong("ie", MENDED_ENGINE, {"model": at(MODEL, "wrong")}, "DownloadFailed", (f"spec.model: {MODEL}", *_KEY)),
    Wrong(
        *("ie", "no-secret-too", {"model": at(MODEL, "nowhere")}),
        *("DownloadFailed", (f"spec.model: {MODEL}", *_NO_SECRET)),
    ),
    Wrong(
        *("ie", "no-bucket-too", {"model": at("s3://nowhere/x", "store")}),
        *("DownloadFailed", ("spec.model: s3://nowhere/x", *_NO_BUCKET)),
    ),
)


@pytest.fixture(scope="module")
def store(kubectl: Kubectl) -> Iterator[ObjectStore]:
    """An S3 server with the team's buckets."""
    found = store_in_cluster(kubectl)
    upload(found)
    yield found
    kubectl("delete", "namespace", STORE, "--wait=false")


@pytest.fixture(scope="module")
def team(kubectl: Kubectl, sluice: Sluice, proxy: str, store: ObjectStore) -> Iterator[Team]:
    """The team, with the example's Secret and engine, and GPUs of its own."""
    node = kubectl.read("nodes")["items"][0]["metadata"]["name"]
    amounts = f'{{"capacity":{{"{GPU_ON_S3}":"{GPUS}"}},"allocatable":{{"{GPU_ON_S3}":"{GPUS}"}}}}'
    kubectl("patch", "node", node, "--subresource=status", f'--patch={{"status":{amounts}}}')
    kubectl("create", "namespace", ON_S3)
    kubectl("label", "namespace", ON_S3, RESTRICTED)
    kubectl.apply({**objects.pool(), "metadata": {"name": ON_S3}, "spec": {"resourceName": GPU_ON_S3}})
    found = Team(kubectl, proxy, ON_S3)
    secret, engine, _ = example(store)
    found.apply(secret, engine)
    yield found
    found.delete("ftj", "--all")  # a trainer that is told to stop wants to save to the store
    found.wait_all("pods", lambda pods: not pods, "no trainer is left", stage="Train")
    kubectl("delete", f"namespace/{ON_S3}", f"gpupool/{ON_S3}", "--wait=false")


@dataclass(frozen=True)
class Told:
    """What was said while everything was wrong."""

    conditions: dict[str, Object]
    """By name, of those that tell."""
    everything: str


@pytest.fixture(scope="module")
def told(team: Team, store: ObjectStore) -> Told:
    """All of the table are applied at once. When they have told, one Secret is mended, and who waits for it stays."""
    secret, engine, job = example(store)
    wrong = {**secret, "metadata": {"name": "wrong"}}
    team.apply({**wrong, "stringData": {**store.secret, "AWS_SECRET_ACCESS_KEY": OTHER_SECRET}})
    little = {**engine["spec"]["resources"], "memory": "512Mi"}  # no vLLM gets to its model
    usual = {"ftj": changed(job, "", publish=None), "ie": changed(engine, "", replicas=1, resources=little)}
    team.apply(*(changed(usual[each.kind], each.name, **each.spec) for each in TABLE))
    conditions = {**_told(team, "ftj"), **_told(team, "ie")}
    said = everything_said(team)
    team.apply({**wrong, "stringData": store.secret})
    team.delete(*(f"{each.kind}/{each.name}" for each in TABLE if each.name not in {MENDED_JOB, MENDED_ENGINE}))
    return Told(conditions, said)


@pytest.mark.parametrize("wrong", TABLE, ids=lambda wrong: wrong.name)
def test_what_can_not_be_had_is_told_with_its_field_and_its_remedy(
    told: Told, wrong: Wrong, store: ObjectStore
) -> None:
    """In the job's and the engine's own condition."""
    condition = told.conditions[wrong.name]
    assert condition["reason"] == wrong.reason
    assert [part for part in wrong.says if part not in condition["message"]] == [], condition["message"]
    for secret in (OTHER_SECRET, store.secret_key):
        assert secret not in told.everything


def test_job_and_engine_go_on_when_their_secret_is_mended(team: Team, told: Told) -> None:
    """By themselves: the job with its next attempt, and the engine as its container starts again."""
    assert told.conditions[MENDED_JOB]["message"].partition(" The next one follows at ")[2]
    team.wait_job(MENDED_JOB, lambda job: job.is_true("Prepared"), "is prepared")
    team.delete("ftj", MENDED_JOB)
    team.wait_all("pods", _has_fetched, "the model is there", LONG, engine=MENDED_ENGINE)
    team.delete("ie", MENDED_ENGINE)


def test_killed_trainer_resumes_from_the_store_to_the_same_adapter(
    team: Team, kubectl: Kubectl, store: ObjectStore
) -> None:
    """The undisturbed job's bytes, served from S3. No volume was there, and no secret was seen."""
    *_, job = example(store)
    team.apply(job, changed(job, "undisturbed", publish=None))
    seen = team.wait_job(JOB, lambda job: job.progress.get("checkpointStep"), "has a checkpoint")
    (pod,) = team.every("pods", job=JOB, stage="Train")
    killed = processes.kill(pod["metadata"]["name"])
    if not killed:  # its node is not this machine
        team.delete("pod", pod["metadata"]["name"], "--force", "--grace-period=0")
    team.wait_job(JOB, lambda job: job.progress.get("attempt") == _SECOND and job.step, "trains again")
    assert processes.environments_with(store.secret_key) == []
    done, undisturbed = team.finished(JOB), team.finished("undisturbed")

    first, last = done.attempts
    assert (first["reason"], last["reason"], last["attempt"]) == ("PodLost", "Done", _SECOND)
    assert last.get("resumedFrom", 0) >= seen.progress["checkpointStep"]
    assert done.digest == undisturbed.digest
    assert done.status["result"]["uri"].startswith(f"{RESULTS}/{JOB}-")
    assert (done.status["data"]["rows"], done.status["data"]["validationRows"]) == (0.9 * ROW_COUNT, 0.1 * ROW_COUNT)

    team.whole()
    team.wait("ad", JOB, lambda ad: ad["status"].get("loaded") == "2/2", "both replicas have the adapter")
    base, alias = team.chat("chat", QUESTION), team.chat(JOB, QUESTION)
    assert alias.text != base.text
    for replica in team.slot_pods():
        assert team.chat(JOB, QUESTION, pod=replica["metadata"]["name"]) == alias
        assert team.chat("chat", QUESTION, pod=replica["metadata"]["name"]) == base

    assert not kubectl.read("pvc", f"--namespace={ON_S3}")["items"]
    volumes = [volume for pod in team.every("pods") for volume in pod["spec"]["volumes"]]
    assert not [volume for volume in volumes if {"persistentVolumeClaim", "hostPath"} & volume.keys()]
    assert store.secret_key not in everything_said(team)
    secret = store.secret_key.encode()
    assert not [file for file in store.folder.rglob("*") if file.is_file() and secret in file.read_bytes()]


def _told(team: Team, kind: str) -> dict[str, Object]:
    """The condition of each of a kind, as it was when it told. A job that is tried again says that it is prepared."""
    wrong = {each.name: each for each in TABLE if each.kind == kind}
    told: dict[str, Object] = {}

    def all_tell(found: list[Object]) -> bool:
        for each in found:
            name = each["metadata"]["name"]
            if name in wrong:
                condition = JobState(each).condition(wrong[name].condition)
                if condition.get("reason") == wrong[name].reason:
                    told[name] = condition
        return told.keys() == wrong.keys()

    team.wait_all(kind, all_tell, f"every {kind} says what is wrong", LONG)
    return told


def _has_fetched(pods: list[Object]) -> bool:
    """Whether the container that fetches the model is done."""
    (pod,) = pods
    (fetches, *_) = pod["status"].get("initContainerStatuses", ())
    return bool(fetches["state"].get("terminated", {}).get("exitCode") == 0)


def everything_said(team: Team) -> str:
    """All objects of the team but its Secrets, as anybody may read them, and all logs, the operator's too."""
    kinds = "ftj,ie,ad,pods,jobs,deployments,replicasets,configmaps,networkpolicies,events"
    namespace = f"--namespace={team.name}"
    names = [pod["metadata"]["name"] for pod in team.every("pods")]
    return "\n".join(
        (
            team.kubectl("get", kinds, namespace, "--output=yaml"),
            *(team.kubectl("logs", name, namespace, "--all-containers", "--ignore-errors") for name in names),
            team.kubectl("logs", f"--namespace={SYSTEM}", "--selector=app.kubernetes.io/name=sluice", "--tail=-1"),
        )
    )
