"""What decisions need of Kubernetes' own objects, and nothing else: big objects are trimmed as they enter."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from sluice_api.claim import Claim
from sluice_api.meta import INDEX_LABEL, index_of, is_extended, slot_name, stage_job_name
from sluice_api.selectors import LabelSelector
from sluice_api.stages import Stage


class Key(NamedTuple):
    """An object's place: what the queue holds and the store is keyed by."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        """As kubectl writes it."""
        return f"{self.kind}/{self.namespace}/{self.name}" if self.namespace else f"{self.kind}/{self.name}"


class Address(NamedTuple):
    """Where something listens."""

    ip: str
    port: int


@dataclass(frozen=True, slots=True)
class Owner:
    """The controller of an object."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What every trimmed object has."""

    key: Key
    uid: str
    resource_version: int
    created: datetime
    deleting: bool = False
    owner: Owner | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


Resources = Mapping[str, int]
"""Amounts by resource name: `cpu` in millicores, `memory` in bytes, others counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetView(View):
    """A PodDisruptionBudget."""

    pods: LabelSelector | None
    """Which pods of its namespace it is about, by their labels; none selects none."""
    allowed: int
    """How many of them may go now; 0 while its controller has not counted yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceView(View):
    """A namespace; its labels say which pools and engines are open to it."""


@dataclass(frozen=True, slots=True)
class Taint:
    """Keeps pods away that do not tolerate it."""

    key: str
    value: str
    effect: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView(View):
    """A node."""

    allocatable: Resources
    ready: bool = True
    not_ready_since: datetime | None = None
    """Since when it is not, if the node's condition says so."""
    cordoned: bool = False
    taints: tuple[Taint, ...] = ()


@dataclass(frozen=True, slots=True)
class Termination:
    """How a pod's main container ended."""

    exit_code: int
    reason: str
    message: str
    finished_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PodView(View):
    """A pod of ours, or anybody's pod that is bound to a node."""

    requests: Resources
    node: str = ""
    nominated_node: str = ""
    gates: tuple[str, ...] = ()
    bound_at: datetime | None = None
    """When Sluice took the gate off (annotation sluice.dev/bound-at)."""
    ended: bool = False
    """Phase Succeeded or Failed: it holds nothing."""
    running: bool = False
    """Its main container has started."""
    ready: bool = False
    goes_at_once: bool = False
    """Nothing holds up its deletion, neither a grace period nor a finalizer: it is gone with it, or in a moment."""
    in_time: int | None = None
    """Seconds that Sluice gives it to end, if somebody has deleted it with more."""
    waiting_reason: str = ""
    """A container's state.waiting.reason, such as ImagePullBackOff."""
    waiting_message: str = ""
    unschedulable: str = ""
    """Message of PodScheduled=False with reason Unschedulable."""
    disruption: str = ""
    """Who takes the pod away though it could go on, and why: the condition DisruptionTarget."""
    failure: str = ""
    """Why the kubelet ended the pod, or never let it begin: reason and message of its status."""
    started: bool = False
    """A container of it has run."""
    volume_claims: tuple[str, ...] = ()
    """PersistentVolumeClaims that it mounts."""
    template: str = ""
    """Of an engine's pod: the digest of what the spec asked for when it was made, see SlotView."""
    termination: Termination | None = None

    @property
    def index(self) -> int:
        """Which pod of its Job this is; 0 in a Job of one pod."""
        return index_of(self.labels.get(INDEX_LABEL, "")) or 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StageJobView(View):
    """A batch/v1 Job of one attempt of one stage."""

    stage: Stage
    attempt: int
    claim: Claim | None = None
    suspended: bool = False
    finished: str = ""
    """`Complete`, `Failed`, or empty while it is not finished."""
    failure: str = ""
    """Reason and message of the Failed condition."""
    finished_at: datetime | None = None
    seen: bool = True
    """It has come back through a list or a watch, not only as the answer to our own write."""
    readable: bool = True
    """False since somebody changed it into what can't be read: this is the last state that could be."""

    @property
    def is_ours(self) -> bool:
        """Whether Sluice could have made it: by its name, and by what its claim says of its own namespace.

        Who may create Jobs may write labels, annotations and owners. One that has lost its owner is believed so far.
        """
        owner, namespace, claim = self.owner, self.key.namespace, self.claim
        if owner and owner.kind != "FineTuneJob":
            return False
        if owner and self.key.name != stage_job_name(owner.name, owner.uid, self.stage, self.attempt):
            return False
        if claim is None:
            return True
        used = () if is_extended(claim.resource) else claim.borrowed  # a ResourceClaim is of use to its namespace only
        return all(slot.namespace == namespace for slot in (*used, *filter(None, [claim.host])))


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotView(View):
    """A Deployment of one engine slot."""

    engine: str
    index: int
    size: int
    """spec.replicas: 0 or 1."""
    template: str = ""
    """Digest of the engine's spec that its pod template was made from."""
    restarted_at: datetime | None = None
    """When it was last started after it had been stopped."""

    @property
    def is_ours(self) -> bool:
        """Whether Sluice could have made it: by its owner and its name."""
        owner = self.owner
        return (
            owner is not None
            and (owner.kind, owner.name) == ("InferenceEngine", self.engine)
            and (self.key.name == slot_name(self.engine, self.index))
        )


@dataclass(frozen=True, slots=True)
class NodeRequirement:
    """One requirement of a volume's node affinity."""

    key: str
    operator: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeClaimView(View):
    """A PersistentVolumeClaim."""

    bound: bool = False
    volume: str = ""
    access_modes: tuple[str, ...] = ()
    terminating: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeView(View):
    """A PersistentVolume: where it can be mounted (any of the terms, all requirements of one)."""

    node_terms: tuple[tuple[NodeRequirement, ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceView(View):
    """A ResourceSlice: devices that a driver offers on a node."""

    node: str
    """Empty for devices that are no single node's."""
    driver: str
    pool: str
    """The driver's, of which the newest generation counts."""
    generation: int
    devices: int
    """Whole GPUs among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceClaimView(View):
    """A ResourceClaim."""

    asks: tuple[str, int] | None = None
    """A device class and a number, if that is all that it asks for."""
    node: str = ""
    """Where its devices are; empty while it has none."""
    devices: Mapping[str, int] = field(default_factory=dict)
    """How many it has, by driver."""
    pods: tuple[str, ...] = ()
    """Uids of the pods that use them."""
