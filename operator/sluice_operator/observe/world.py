"""The World: everything that decisions read, as one read-only value.

Planning never awaits, so the maps of the store stand still while a World is used. A World is valid
until the next `await`; reconcile() makes a new one each time.
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
"""Namespace and uid. A controller is of its object's namespace: a uid alone is a claim that anybody may write."""

LOAD_SECONDS = 30
"""Over which the load of a replica is averaged."""


@dataclass(frozen=True, slots=True)
class Reported:
    """The newest report of an engine's pod."""

    report: EngineReport
    at: datetime
    load: float = 0.0
    """Requests in flight, averaged over the last half minute or so."""

    def then(self, report: EngineReport, at: datetime) -> "Reported":
        """What is known after the next report. Between two reports as many requests were in flight as the first said.

        The average forgets exponentially.
        """
        kept = exp(-max(0.0, (at - self.at).total_seconds()) / LOAD_SECONDS)
        return Reported(report, at, kept * self.load + (1 - kept) * self.report.in_flight)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """When a training attempt last reported in this term that it goes on, and how long its steps take."""

    attempt: int
    at: datetime
    step_seconds: float | None
    """None before the first step, and while training stands still for a save."""
    trouble: str = ""
    """What it has said since: why it stands still."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the API server has refused to make for an engine."""

    reason: Reason
    message: str
    until: datetime
    """When it is tried again."""


@dataclass(frozen=True, slots=True)
class SetAside:
    """An object at which something was raised when it was looked at: a fault of ours, or of what it says."""

    key: Key
    why: str
    """What was raised, and where."""
    trace: str = ""
    at: datetime | None = None
    """When the store was told."""


@dataclass(frozen=True)
class World:
    """Everything that decisions read. Maps are keyed by Key; `*_of` maps by the identity of the owner."""

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
    """Pods that are bound to none yet, by the name of the node that they are nominated to."""
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
    """Of these, by the name of the node."""
    claims_from: Mapping[tuple[str, str], Mapping[Key, StageJobView]] = field(default_factory=dict)
    """Of these, by the (namespace, name) of each engine from which they borrow."""
    preempting: Mapping[str, Mapping[Key, StageJobView]] = field(default_factory=dict)
    """Of these, those that come in the place of others, by the uid of each of them."""
    unfinished: Mapping[str, Mapping[Key, FineTuneJob]] = field(default_factory=dict)
    """Jobs that have neither succeeded nor failed, as their status says, by the name of the pool."""

    preparing: Mapping[Key, StageJobView] = field(default_factory=dict)
    """Stage Jobs that prepare data and have not finished."""
    starting: Set[Key] = frozenset()
    """Jobs for which such a Job is being made at this moment."""
    to_prepare: Mapping[str, Mapping[Key, FineTuneJob]] = field(default_factory=dict)
    """Jobs that wait to prepare their data, as their status says, by the name of the pool."""

    reports: Mapping[str, Reported] = field(default_factory=dict)
    """Engine reports of this term by the pod's uid."""
    heartbeats: Mapping[str, Heartbeat] = field(default_factory=dict)
    """Training reports of this term by the uid of the stage Job."""
    refused: Mapping[Key, Refusal] = field(default_factory=dict)
    """Engines of which no slot can start now, as the API server refuses what it needs."""
    term: int = 0
    """The lease's transition count; 0 before this process ever led."""
    since: datetime | None = None
    """When this term began: silence before that proves nothing, nobody listened here."""

    set_aside: Mapping[Key, SetAside] = field(default_factory=dict)
    """Objects that are left alone until they change, or a while has passed."""
    shunned: frozenset[str] = frozenset()
    """Names of nodes that count for no pool: they are set aside, and what is on them goes on."""

    memo: dict[Hashable, Any] = field(default_factory=dict, compare=False)
    """What was found out about exactly this state (memo.py); empty after each change."""
    job_memos: dict[str, tuple[FineTuneJob, dict[Hashable, Any]]] = field(default_factory=dict, compare=False)
    """See `job_memo`; by the job's uid."""

    def job_memo(self, job: FineTuneJob) -> dict[Hashable, Any]:
        """What follows from one job alone and was costly to find out; empty when it has changed."""
        uid = job.metadata.uid
        note = self.job_memos.get(uid)
        if note is None or note[0] is not job:
            note = self.job_memos[uid] = (job, {})
        return note[1]

    def resource(self, key: Key) -> Custom | None:
        """The custom resource of a key, if it is there."""
        of_kind: Mapping[str, Mapping[Key, Custom]] = {
            FineTuneJob.KIND.kind: self.jobs,
            InferenceEngine.KIND.kind: self.engines,
            Adapter.KIND.kind: self.adapters,
            GPUPool.KIND.kind: self.pools,
        }
        return of_kind[key.kind].get(key)

    def without(self, keys: Collection[Key]) -> "World":
        """The same as if some objects were not there. Their Jobs and pods are, and what those have is theirs."""
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
    """By what the objects of an owner are found."""
    if isinstance(owner, View):
        return owner.key.namespace, owner.uid
    return owner.metadata.namespace, owner.metadata.uid


def oldest_first(views: Iterable[AnyView]) -> list[AnyView]:
    """By creation, then name: the same order on every replica."""
    return sorted(views, key=lambda view: (view.created, view.key))


def existing(world: World, engine: InferenceEngine) -> dict[int, SlotView]:
    """The engine's slots that have a Deployment, by index."""
    slots = world.slots_of.get(identity(engine), {}).values()
    return {slot.index: slot for slot in slots if not slot.deleting}
