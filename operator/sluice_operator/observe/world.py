"""The World: everything that decisions read, as one read-only value.

Planning never awaits, so the store's maps do not change while a World is used. A World is valid until the next `await`;
each reconcile makes a new one.
"""

from collections.abc import Collection, Hashable, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from datetime import datetime
from math import exp
from typing import Any, TypeVar

from sluice_api.adapter import Adapter
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.reasons import Reason
from sluice_api.reports import EngineReport
from sluice_operator.observe.views import (
    BudgetView,
    DeviceClaimView,
    Key,
    NamespaceView,
    NodeView,
    PodView,
    SliceView,
    SlotView,
    StageJobView,
    View,
    VolumeClaimView,
    VolumeView,
)

AnyView = TypeVar("AnyView", bound=View)
AnyObject = TypeVar("AnyObject")
Custom = FineTuneJob | InferenceEngine | Adapter | GPUPool
Identity = tuple[str, str]
"""Namespace and uid. Both, because anybody may write a uid into an owner reference, but only in their own namespace."""

LOAD_SECONDS = 30
"""The time constant over which a replica's load is averaged."""


@dataclass(frozen=True, slots=True)
class Reported:
    """The newest report of an engine's pod."""

    report: EngineReport
    at: datetime
    load: float = 0.0
    """Requests in flight, averaged over the last LOAD_SECONDS or so."""

    def then(self, report: EngineReport, at: datetime) -> "Reported":
        """What is known after the next report. Older reports count exponentially less.

        Until that report as many requests were in flight as the last one said.
        """
        kept = exp(-max(0.0, (at - self.at).total_seconds()) / LOAD_SECONDS)
        return Reported(report, at, kept * self.load + (1 - kept) * self.report.in_flight)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The newest sign of life of a training attempt in this term, and how long its steps take."""

    attempt: int
    at: datetime
    step_seconds: float | None
    """None before the first step, and while training stands still to save its state."""
    trouble: str = ""
    """Why it stands still, if it has said so since; empty otherwise."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the API server refuses to make for an engine."""

    reason: Reason
    message: str
    until: datetime
    """When Sluice tries it again."""


@dataclass(frozen=True, slots=True)
class SetAside:
    """An object at which a look raised an exception, by a fault of ours or of what the object says."""

    key: Key
    why: str
    """What was raised, and where."""
    trace: str = ""
    at: datetime | None = None
    """When it was set aside; None within the decision that finds the fault."""


@dataclass(frozen=True)
class World:
    """All that decisions read: the objects as the informers last saw them, and what the pods have reported.

    Maps are keyed by Key; maps named `*_of` by the owner's identity.
    """

    jobs: Mapping[Key, FineTuneJob] = field(default_factory=dict)
    engines: Mapping[Key, InferenceEngine] = field(default_factory=dict)
    adapters: Mapping[Key, Adapter] = field(default_factory=dict)
    pools: Mapping[Key, GPUPool] = field(default_factory=dict)
    namespaces: Mapping[Key, NamespaceView] = field(default_factory=dict)
    nodes: Mapping[Key, NodeView] = field(default_factory=dict)
    pods: Mapping[Key, PodView] = field(default_factory=dict)
    stage_jobs: Mapping[Key, StageJobView] = field(default_factory=dict)
    slots: Mapping[Key, SlotView] = field(default_factory=dict)
    volume_claims: Mapping[Key, VolumeClaimView] = field(default_factory=dict)
    volumes: Mapping[Key, VolumeView] = field(default_factory=dict)
    budgets_in: Mapping[str, Mapping[Key, BudgetView]] = field(default_factory=dict)
    """PodDisruptionBudgets by their namespace."""

    serves_dra: bool = True
    """Whether the cluster has ResourceSlices and ResourceClaims at all."""
    slices_on: Mapping[str, Mapping[Key, SliceView]] = field(default_factory=dict)
    """ResourceSlices by the name of the node."""
    device_claims_on: Mapping[str, Mapping[Key, DeviceClaimView]] = field(default_factory=dict)
    """ResourceClaims by the name of the node whose devices they have."""
    slot_devices: Mapping[tuple[str, str], Mapping[Key, DeviceClaimView]] = field(default_factory=dict)
    """ResourceClaims of slots, by (namespace, engine)."""

    pods_of: Mapping[Identity, Mapping[Key, PodView]] = field(default_factory=dict)
    """Pods by their controller: a Job, or a ReplicaSet."""
    pods_on: Mapping[str, Mapping[Key, PodView]] = field(default_factory=dict)
    """Pods by the name of the node that they are bound to."""
    pods_coming: Mapping[str, Mapping[Key, PodView]] = field(default_factory=dict)
    """Unbound pods by the name of the node that they are nominated to."""
    engine_pods: Mapping[tuple[str, str, int], Mapping[Key, PodView]] = field(default_factory=dict)
    """Pods by (namespace, engine, slot index)."""
    placeholders: Mapping[tuple[str, str], Mapping[Key, PodView]] = field(default_factory=dict)
    """Pods that keep the GPUs of lent slots, by (namespace, engine)."""
    scale_ups: Mapping[str, Mapping[Key, PodView]] = field(default_factory=dict)
    """Pods that ask for nodes, by the name of the pool."""
    stage_jobs_of: Mapping[Identity, Mapping[Key, StageJobView]] = field(default_factory=dict)
    """Stage Jobs by their FineTuneJob."""
    slots_of: Mapping[Identity, Mapping[Key, SlotView]] = field(default_factory=dict)
    """Slot Deployments by their InferenceEngine."""
    claiming: Mapping[Key, StageJobView] = field(default_factory=dict)
    """Stage Jobs that carry a claim, finished or not."""
    claims_on: Mapping[str, Mapping[Key, StageJobView]] = field(default_factory=dict)
    """Of `claiming`, by the name of each node of the claim."""
    claims_from: Mapping[tuple[str, str], Mapping[Key, StageJobView]] = field(default_factory=dict)
    """Of `claiming`, by the (namespace, name) of each engine from which they borrow."""
    preempting: Mapping[str, Mapping[Key, StageJobView]] = field(default_factory=dict)
    """Of `claiming`, by the uid of each attempt that they preempt."""
    unfinished: Mapping[str, Mapping[Key, FineTuneJob]] = field(default_factory=dict)
    """Jobs that have neither succeeded nor failed, as their status says, by the name of the pool."""

    preparing: Mapping[Key, StageJobView] = field(default_factory=dict)
    """Stage Jobs that prepare data and have not finished."""
    starting: Set[Key] = frozenset()
    """Jobs for which a Prepare is being made at this moment."""
    to_prepare: Mapping[str, Mapping[Key, FineTuneJob]] = field(default_factory=dict)
    """Jobs that wait to prepare their data, as their status says, by the name of the pool."""

    reports: Mapping[str, Reported] = field(default_factory=dict)
    """Engine reports of this term by the pod's uid."""
    heartbeats: Mapping[str, Heartbeat] = field(default_factory=dict)
    """Training reports of this term by the uid of the stage Job."""
    refused: Mapping[Key, Refusal] = field(default_factory=dict)
    """Engines that can start no slot now, because the API server refuses something."""
    term: int = 0
    """The lease's transition count; 0 before this process ever led."""
    since: datetime | None = None
    """When this term began. Silence before that proves nothing, as this process did not listen."""

    set_aside: Mapping[Key, SetAside] = field(default_factory=dict)
    """Objects that are left alone until they change or a while has passed."""
    shunned: frozenset[str] = frozenset()
    """Names of nodes that are set aside. They count for no pool, and what runs on them goes on."""

    memo: dict[Hashable, Any] = field(default_factory=dict, compare=False)
    """What was worked out from exactly this state (memo.py); emptied by each change."""
    job_memos: dict[str, tuple[FineTuneJob, dict[Hashable, Any]]] = field(default_factory=dict, compare=False)
    """By the job's uid: see `job_memo`."""

    def job_memo(self, job: FineTuneJob) -> dict[Hashable, Any]:
        """A memo for costly answers that depend on one job alone; empty once the job has changed."""
        uid = job.metadata.uid
        note = self.job_memos.get(uid)
        if note is None or note[0] is not job:
            note = self.job_memos[uid] = (job, {})
        return note[1]

    def resource(self, key: Key) -> Custom | None:
        """The custom resource of a key; None if there is none.

        Raises:
            KeyError: the key's kind is not one of Sluice's.
        """
        of_kind: Mapping[str, Mapping[Key, Custom]] = {
            FineTuneJob.KIND.kind: self.jobs,
            InferenceEngine.KIND.kind: self.engines,
            Adapter.KIND.kind: self.adapters,
            GPUPool.KIND.kind: self.pools,
        }
        return of_kind[key.kind].get(key)

    def without(self, keys: Collection[Key]) -> "World":
        """The World as if some objects were not there. Their Jobs and pods are still there, with all that they hold."""
        if not keys:
            return self
        asked = (World.without, frozenset(keys))
        if asked not in self.memo:
            self.memo[asked] = replace(
                self,
                jobs=_less(self.jobs, keys),
                engines=_less(self.engines, keys),
                adapters=_less(self.adapters, keys),
                unfinished={pool: _less(jobs, keys) for pool, jobs in self.unfinished.items()},
                shunned=frozenset(key.name for key in keys if key.kind == "Node"),
                memo={},
            )
        rest: World = self.memo[asked]
        return rest


def _less(objects: Mapping[Key, AnyObject], keys: Collection[Key]) -> Mapping[Key, AnyObject]:
    return {key: found for key, found in objects.items() if key not in keys}


def job_key(namespace: str, name: str) -> Key:
    """Key of a FineTuneJob."""
    return Key("FineTuneJob", namespace, name)


def engine_key(namespace: str, name: str) -> Key:
    """Key of an InferenceEngine."""
    return Key("InferenceEngine", namespace, name)


def adapter_key(namespace: str, name: str) -> Key:
    """Key of an Adapter."""
    return Key("Adapter", namespace, name)


def pool_key(name: str) -> Key:
    """Key of a GPUPool."""
    return Key("GPUPool", "", name)


def key_of(resource: FineTuneJob | InferenceEngine | Adapter | GPUPool) -> Key:
    """Key of a custom resource."""
    return Key(resource.KIND.kind, resource.metadata.namespace, resource.metadata.name)


def identity(owner: View | FineTuneJob | InferenceEngine) -> Identity:
    """What an owner's objects are found by."""
    if isinstance(owner, View):
        return owner.key.namespace, owner.uid
    return owner.metadata.namespace, owner.metadata.uid


def oldest_first(views: Iterable[AnyView]) -> list[AnyView]:
    """In order of creation, then of name: the same in every process."""
    return sorted(views, key=lambda view: (view.created, view.key))


def existing(world: World, engine: InferenceEngine) -> dict[int, SlotView]:
    """The engine's slots that have a Deployment, by index."""
    slots = world.slots_of.get(identity(engine), {}).values()
    return {slot.index: slot for slot in slots if not slot.deleting}
