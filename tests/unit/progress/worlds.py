"""Small Worlds: one job with its trainer, one engine with its slot."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from sluice_api.adapter import Adapter
from sluice_api.claim import Claim, NodeAllocation, SlotRef
from sluice_api.finetunejob import FineTuneJob
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.stages import Stage
from sluice_operator.observe.parse import Parsed, parse
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key, Owner, PodView, SlotView, StageJobView

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
URI = "pvc://claim/folder"


def job(name: str = "tone", uid: str = "job-uid", **more: object) -> FineTuneJob:
    body = {
        "metadata": {"name": name, "namespace": "team", "uid": uid, "resourceVersion": "1"},
        "spec": {"model": {"uri": URI}, "dataset": {"uri": URI}, "output": {"uri": URI}},
        **more,
    }
    found = parse("FineTuneJob", body)
    assert isinstance(found, FineTuneJob)
    return found


def engine(uid: str = "engine-uid", **more: object) -> InferenceEngine:
    metadata = {"name": "chat", "namespace": "team", "uid": uid, "resourceVersion": "1"}
    spec = {"model": {"uri": URI}, "preemption": {"policy": "ScaleDown"}}
    found = parse("InferenceEngine", {"metadata": metadata, "spec": spec, **more})
    assert isinstance(found, InferenceEngine)
    return found


def adapter(name: str, engine_name: str = "chat") -> Adapter:
    metadata = {"name": name, "namespace": "team", "uid": f"{name}-uid", "resourceVersion": "1"}
    found = parse("Adapter", {"metadata": metadata, "spec": {"engine": engine_name, "source": {"uri": URI}}})
    assert isinstance(found, Adapter)
    return found


STAGE_JOB = StageJobView(
    key=Key("Job", "team", "tone-jobuid-train-1"),
    uid="train-uid",
    resource_version=1,
    created=NOW,
    owner=Owner("FineTuneJob", "tone", "job-uid"),
    stage=Stage.TRAIN,
    attempt=1,
    claim=Claim(
        pool="default",
        resource="nvidia.com/gpu",
        gpus=1,
        term=1,
        places=(NodeAllocation(node="gpu-1", borrowed=(SlotRef(namespace="team", engine="chat", index=0),)),),
    ),
)
TRAINER = PodView(
    key=Key("Pod", "team", "tone-jobuid-train-1-x7k2p"),
    uid="trainer-uid",
    resource_version=1,
    created=NOW,
    owner=Owner("Job", "tone-jobuid-train-1", "train-uid"),
    labels={"sluice.dev/job": "tone", "batch.kubernetes.io/controller-uid": "train-uid"},
    requests={},
)
SLOT = SlotView(
    key=Key("Deployment", "team", "chat-0"),
    uid="slot-uid",
    resource_version=1,
    created=NOW,
    owner=Owner("InferenceEngine", "chat", "engine-uid"),
    engine="chat",
    index=0,
    size=1,
)
DEPLOYMENT = Owner("Deployment", "chat-0", "slot-uid")
REPLICA = PodView(
    key=Key("Pod", "team", "chat-0-5d9c-abcde"),
    uid="replica-uid",
    resource_version=1,
    created=NOW,
    owner=Owner("ReplicaSet", "chat-0-5d9c", "replicaset-uid"),
    labels={"sluice.dev/engine": "chat", "sluice.dev/slot": "0", "pod-template-hash": "5d9c"},
    requests={},
)


def younger(pod: PodView, name: str) -> PodView:
    """Another pod of the same controller, made later."""
    key = Key("Pod", pod.key.namespace, name)
    return replace(pod, key=key, uid=f"{name}-uid", created=pod.created + timedelta(seconds=1))


@dataclass(frozen=True)
class Work:
    """A queue, for those who only ask it."""

    failed: Collection[Key] = ()
    asked: Mapping[Key, float] = field(default_factory=dict)

    def failing(self) -> Collection[Key]:
        return self.failed

    def waiting(self) -> Iterable[tuple[Key, float]]:
        return self.asked.items()


def store(*objects: Parsed) -> Store:
    """A store that has just these."""
    made = Store()
    for found in objects:
        made.put(found, seen=True)
    return made


def whole(*more: Parsed) -> Store:
    """A job with its trainer, an engine with its slot, and more."""
    return store(job(), STAGE_JOB, TRAINER, engine(), SLOT, REPLICA, *more)
