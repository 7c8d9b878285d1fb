"""GPUPool: which nodes belong together, and the GPU resource that they offer."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field, NonNegativeInt, StringConstraints

from sluice_api.conditions import Condition
from sluice_api.meta import DEFAULT_DEVICE_CLASS, DEFAULT_GPU_RESOURCE, EXPERIMENTAL
from sluice_api.model import Decimal, Model, Remedy
from sluice_api.resource import DNS_LABEL_NAME, Column, Kind, Resource, Rule, rules
from sluice_api.selectors import LabelKey, Labels, NamespaceSelector
from sluice_api.tolerations import Toleration

DeviceClass = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=63),
    Remedy("write the name of a DeviceClass, such as gpu.nvidia.com"),
]


class NamespaceQuota(Model):
    """What one namespace may have at once. It bounds each namespace that it selects, not their sum."""

    namespaces: NamespaceSelector = Field(
        default_factory=NamespaceSelector, description="The namespaces that the quota bounds. Empty: every one."
    )
    max_gpus: int | None = Field(
        None, ge=0, le=1_000_000, alias="maxGPUs", description="GPUs that its jobs hold at once. Absent: any number."
    )
    max_borrowed_gpus: int | None = Field(
        None,
        ge=0,
        le=1_000_000,
        alias="maxBorrowedGPUs",
        description="How many of these may be borrowed from engines at once. Absent: any number.",
    )
    max_priority: int | None = Field(
        None,
        ge=-1000,
        le=1000,
        description="Highest scheduling.priority of its jobs and preemption.priority of its engines. Absent: any.",
    )
    max_serving_gpus: int | None = Field(
        None,
        ge=0,
        le=1_000_000,
        alias="maxServingGPUs",
        description="GPUs that the replicas of its engines have at once, including those that they lend. Absent: any "
        "number.",
    )
    max_total_gpus: int | None = Field(
        None,
        ge=0,
        le=1_000_000,
        alias="maxTotalGPUs",
        description="GPUs of its jobs and its replicas together. A GPU that the namespace lends to itself counts "
        "once. Absent: any number.",
    )


class SharingMode(StrEnum):
    """How several pods use one GPU: as a device plugin lets them, or by one ResourceClaim of DRA."""

    NONE = "None"
    TIME_SLICING = "TimeSlicing"
    MPS = "MPS"
    HAMI = "HAMi"
    DRA = "DRA"


class Sharing(Model):
    """How a device plugin or DRA shares the nodes' GPUs. Sluice sets up neither, it writes what both understand."""

    mode: SharingMode = Field(
        SharingMode.NONE,
        description=f"{EXPERIMENTAL} How pods share a GPU. None, the default: they do not, and every GPU belongs to "
        "one pod. TimeSlicing and MPS: NVIDIA's device plugin divides each GPU. MPS gives each part its own memory; "
        "TimeSlicing does not, so the trainer keeps to its share by itself. HAMi: its device plugin keeps each pod to "
        "the nvidia.com/gpumem-percentage that it asks for. DRA: GPUs are devices of ResourceSlices, and a training "
        "pod can use a replica's ResourceClaim beside it.",
    )
    replicas: int | None = Field(
        None,
        ge=2,
        le=128,
        description=f"{EXPERIMENTAL} Into how many parts the device plugin divides each GPU. What nodes offer, and "
        "what jobs and engines of this pool ask for, is counted in these parts.",
    )

    device_class: DeviceClass = Field(
        DEFAULT_DEVICE_CLASS,
        description=f"{EXPERIMENTAL} With mode DRA: the DeviceClass of the GPUs. It has the name of the driver that "
        "offers them.",
    )

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "(has(self.mode) && self.mode in ['TimeSlicing', 'MPS', 'HAMi']) == has(self.replicas)",
                "set it when mode is TimeSlicing, MPS or HAMi, and only then",
                at=".replicas",
            )
        )
    )


class Preparing(Model):
    """How many jobs of the pool may have their data prepared at once, on CPUs, before they wait for GPUs."""

    at_once: int = Field(32, ge=1, le=10_000, description="Of all namespaces together.")
    per_namespace: int = Field(8, ge=1, le=10_000, description="Of each namespace.")


class GPUPoolSpec(Model):
    """Which nodes belong together."""

    node_selector: Labels = Field(
        default_factory=dict,
        max_length=16,
        description="Labels that each node of this pool has. Empty: every node that offers the resource.",
    )
    resource_name: LabelKey = Field(
        DEFAULT_GPU_RESOURCE, description="The extended resource by which nodes offer GPUs."
    )
    tolerations: tuple[Toleration, ...] = Field(
        (),
        max_length=16,
        description="Taints of the pool's nodes, such as those of spot machines, that the pods of its jobs and "
        "engines tolerate. They always tolerate the taint with the name of the GPU resource. Running replicas keep "
        "the tolerations that they have.",
    )
    sharing: Sharing = Field(
        default_factory=Sharing, description=f"{EXPERIMENTAL} How several pods share a GPU of the pool's nodes."
    )
    allowed_namespaces: NamespaceSelector | None = Field(
        None, description="Namespaces whose jobs and engines may use the pool. Absent: every one."
    )
    quotas: tuple[NamespaceQuota, ...] = Field(
        (),
        max_length=32,
        description="What each namespace may have at once. The first quota that selects a namespace holds.",
    )
    ageing_seconds: int | None = Field(
        None,
        ge=1,
        le=31_536_000,
        description="A waiting job stands one priority higher in the queue for each period of this length, so that "
        "newer jobs cannot hold it back for ever. This does not change from whom it may borrow or whom it may "
        "displace. Absent: no ageing.",
    )
    prepare: Preparing = Field(
        default_factory=Preparing,
        description="How many jobs of the pool prepare their data at the same time. The others wait.",
    )
    price_per_gpu_hour: Decimal = Field("0", description="Price of one GPU for one hour, for reports.")

    @property
    def by_dra(self) -> bool:
        """Whether the nodes offer their GPUs by dynamic resource allocation, and not by a device plugin."""
        return self.sharing.mode is SharingMode.DRA

    @property
    def counted_as(self) -> str:
        """The one name by which the pool's GPUs are counted: of a resource, or of the driver that offers devices."""
        return self.sharing.device_class if self.by_dra else self.resource_name


class GPUPoolStatus(Model):
    """Who has the GPUs now."""

    observed_generation: NonNegativeInt = Field(0, description="Generation of the spec that this status describes.")
    conditions: tuple[Condition, ...] = Field((), max_length=8, description="Ready: the pool has a usable node.")
    nodes: NonNegativeInt = Field(0, description="Nodes of the pool.")
    gpus: NonNegativeInt = Field(0, description="GPUs that the nodes offer.")
    inference: NonNegativeInt = Field(0, description="GPUs that engines use.")
    training: NonNegativeInt = Field(0, description="GPUs that jobs claim, borrowed ones included.")
    lent: NonNegativeInt = Field(0, description="How many of these are borrowed from engines.")
    others: NonNegativeInt = Field(0, description="GPUs that other pods use.")
    free: NonNegativeInt = Field(0, description="GPUs that nobody uses.")
    waiting: NonNegativeInt = Field(0, description="Jobs that wait for GPUs of this pool.")


class GPUPool(Resource):
    """GPU nodes that belong together. Without any pool, all nodes with nvidia.com/gpu form the pool `default`."""

    KIND: ClassVar[Kind] = Kind(
        kind="GPUPool",
        plural="gpupools",
        short_names=("gpool",),
        columns=(
            Column("Nodes", ".status.nodes", "integer"),
            Column("GPUs", ".status.gpus", "integer"),
            Column("Inference", ".status.inference", "integer"),
            Column("Training", ".status.training", "integer"),
            Column("Lent", ".status.lent", "integer"),
            Column("Free", ".status.free", "integer"),
            Column("Waiting", ".status.waiting", "integer"),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
        namespaced=False,
    )

    spec: GPUPoolSpec = Field(default_factory=GPUPoolSpec)
    status: GPUPoolStatus = Field(default_factory=GPUPoolStatus)

    model_config = ConfigDict(json_schema_extra=rules(DNS_LABEL_NAME))
