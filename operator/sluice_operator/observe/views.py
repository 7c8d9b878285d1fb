"""What decisions need of Kubernetes' own objects, and nothing else: big objects are trimmed as they come in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from sluice_api.claim import Claim
from sluice_api.meta import INDEX_LABEL, index_of, is_extended, slot_name, stage_job_name
from sluice_api.selectors import LabelSelector
from sluice_api.stages import Stage


class Key(NamedTuple):
    """What identifies an object in the queue and in the store."""

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
    """Selects pods of its namespace by their labels; None selects none."""
    allowed: int
    """How many of them may be disrupted now; 0 while its controller has not counted yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceView(View):
    """A namespace. Its labels say which pools and engines it may use."""


@dataclass(frozen=True, slots=True)
class Taint:
    """Keeps pods off a node that do not tolerate it."""

    key: str
    value: str
    effect: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView(View):
    """A node."""

    allocatable: Resources
    ready: bool = True
    not_ready_since: datetime | None = None
    """Since when the node is not ready, if its condition says so."""
    cordoned: bool = False
    taints: tuple[Taint, ...] = ()


@dataclass(frozen=True, slots=True)
class Termination:
    """How a pod's main container ended."""

    exit_code: int
    reason: str
    message: str
    finished_at: datetime | None


_IMAGE_TROUBLE = frozenset({"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PodView(View):
    """A pod of ours, or any pod that is bound to a node."""

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
    """It is gone as soon as it is deleted: neither a grace period nor a finalizer delays that."""
    in_time: int | None = None
    """The grace period that Sluice gives it, in seconds, if it was deleted with a longer one."""
    waiting_reason: str = ""
    """A container's state.waiting.reason, such as ImagePullBackOff."""
    waiting_message: str = ""
    unschedulable: str = ""
    """Message of PodScheduled=False with reason Unschedulable."""
    disruption: str = ""
    """Who evicts the pod and why, from the condition DisruptionTarget; empty if it is not evicted."""
    failure: str = ""
    """Why the kubelet ended the pod or never started it: reason and message of its status. For an engine's pod also the
    last error of its vLLM."""
    started: bool = False
    """One of its containers has run."""
    volume_claims: tuple[str, ...] = ()
    """PersistentVolumeClaims that it mounts."""
    daemon_set: str = ""
    """The uid of the DaemonSet that has made it, and would make it again: it stays as long as its node."""
    template: str = ""
    """For an engine's pod, the digest of the spec that it was made from: see SlotView."""
    termination: Termination | None = None
    fetches_model: bool = False
    """For an engine's pod: the container that fetches the model runs."""
    fetch_failure: str = ""
    """The message with which that container ended last; empty when it has not failed, or is done."""

    @property
    def main_ended(self) -> bool:
        """Its main container has ended. The kubelet says so before the pod's phase does."""
        return self.ended or self.termination is not None

    @property
    def starts(self) -> bool:
        """Its main container has not started yet."""
        return not self.running and not self.main_ended

    @property
    def waits_for_image(self) -> bool:
        """Whether a container waits because its image can't be had."""
        return self.waiting_reason in _IMAGE_TROUBLE

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
    """A list or a watch has brought it, not only the answer to a request of ours."""
    readable: bool = True
    """False if it was changed so that it can't be read any more; then this is the last readable state."""

    @property
    def is_ours(self) -> bool:
        """Whether Sluice could have made it, by its name and by what its claim says of its own namespace.

        Anybody who may create Jobs may write labels, annotations and owners. A Job without an owner is judged by its
        claim only.
        """
        owner, namespace, claim = self.owner, self.key.namespace, self.claim
        if owner and owner.kind != "FineTuneJob":
            return False
        if owner and self.key.name != stage_job_name(owner.name, owner.uid, self.stage, self.attempt):
            return False
        if claim is None:
            return True
        used = () if is_extended(claim.resource) else claim.borrowed  # a ResourceClaim works in its namespace only
        return all(slot.namespace == namespace for slot in (*used, *filter(None, [claim.host])))


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotView(View):
    """The Deployment of one engine slot."""

    engine: str
    index: int
    size: int
    """spec.replicas: 0 or 1."""
    template: str = ""
    """Digest of the engine's spec from which its pod template was made."""
    restarted_at: datetime | None = None
    """When it was last started after a stop."""

    @property
    def is_ours(self) -> bool:
        """Whether Sluice could have made it, by its owner and its name."""
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
    """A PersistentVolume. It can be mounted on a node that meets all requirements of any one of its terms."""

    node_terms: tuple[tuple[NodeRequirement, ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceView(View):
    """A ResourceSlice: devices that a driver offers on a node."""

    node: str
    """Empty for devices that belong to no single node."""
    driver: str
    pool: str
    """The driver's own pool of devices. Only its newest generation counts."""
    generation: int
    devices: int
    """Whole GPUs among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceClaimView(View):
    """A ResourceClaim."""

    asks: tuple[str, int] | None = None
    """Device class and number; None if it asks for anything else or more."""
    node: str = ""
    """The node of its devices; empty while it has none."""
    devices: Mapping[str, int] = field(default_factory=dict)
    """How many devices it has, by driver."""
    pods: tuple[str, ...] = ()
    """Uids of the pods that use them."""
