"""InferenceEngine: a model served by vLLM on N replicas, what it lends and what it never lends."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, NonNegativeInt, StringConstraints

from sluice_api.chat_template import ChatTemplate
from sluice_api.conditions import Condition
from sluice_api.meta import DEFAULT_POOL, EXPERIMENTAL
from sluice_api.model import Decimal, Disk, Limit, Memory, Model, Name, Quantity, Remedy, SecretName, Text, Time
from sluice_api.pods import DEFAULT_DISK
from sluice_api.resource import Column, Kind, Resource, Rule, rules
from sluice_api.selectors import NamespaceSelector
from sluice_api.sources import Credentials, ModelUri
from sluice_api.training import MAX_RANK
from sluice_api.windows import BorrowWindow

Utilization = Annotated[
    Decimal,
    Limit(
        "self.matches(r'^(0?[.][0-9]*[1-9][0-9]*|1([.]0+)?)$')",
        "write a share of a GPU's memory above 0 and at most 1, such as '0.90'",
    ),
]


class LendingPolicy(StrEnum):
    """Whether an engine lends its replicas' GPUs."""

    NEVER = "Never"
    SCALE_DOWN = "ScaleDown"
    SLEEP = "Sleep"


class LendTo(StrEnum):
    """Which jobs an engine lends to."""

    SAME_NAMESPACE = "SameNamespace"
    ANYWHERE = "Anywhere"
    SELECTED = "Selected"


class Reclaim(StrEnum):
    """Whether an engine takes a loan back before the job has ended."""

    NEVER = "Never"
    ON_DEMAND = "OnDemand"


class ClientsFrom(StrEnum):
    """Whose pods may ask an engine."""

    SAME_NAMESPACE = "SameNamespace"
    SELECTED = "Selected"
    ANYWHERE = "Anywhere"


class Clients(Model):
    """Who may ask the engine, where the cluster's network enforces NetworkPolicies."""

    come_from: ClientsFrom = Field(
        ClientsFrom.SAME_NAMESPACE,
        alias="from",
        description="SameNamespace: pods of the engine's own namespace. Selected: also those of the namespaces that "
        "`namespaces` selects. Anywhere: every address. The addresses in the chart's networkPolicy.clientsFrom may "
        "always ask.",
    )
    namespaces: NamespaceSelector | None = Field(None, description="With from: Selected, the other namespaces.")

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "(has(self.from) && self.from == 'Selected') == has(self.namespaces)",
                "namespaces belongs to from: Selected; write both or neither",
                at=".namespaces",
            )
        )
    )


class ServedModel(Model):
    """The base model."""

    uri: ModelUri = Field(
        description="Where the base model is: pvc://claim/path, hf://org/name@revision, or s3://bucket/path (gs:// "
        "and az:// too). A pvc:// folder is mounted read-only into every replica; any other is fetched into its cache "
        "when it starts."
    )
    credentials: Credentials | None = Field(
        None, description="What opens the address, such as a gated model's. Absent: nothing is needed."
    )
    chat_template: ChatTemplate | None = Field(
        None, description="How turns become text, instead of the model's own chat template. Absent: the model's own."
    )
    cache_claim: Name | None = Field(
        None,
        description="A PersistentVolumeClaim in which models and adapters that are fetched are kept, so that a second "
        "replica on the node, or the next start, fetches nothing. Absent: each pod's own disk.",
    )


class AdapterTemplates(StrEnum):
    """Whose chat templates adapters may bring."""

    ANY = "Any"
    KNOWN = "Known"


class EngineResources(Model):
    """What one replica needs."""

    gpus: int = Field(1, ge=1, le=64, description="GPUs of one replica (tensor parallel).")
    pool: Name = Field(DEFAULT_POOL, description="The GPUPool of these GPUs.")
    memory: Memory = Field("16Gi", description="Memory request and limit of one replica's vLLM.")
    cpu: Quantity = Field(
        "1",
        description="CPU request of one replica's vLLM, which has no limit. As many threads, at least one, compute "
        "what no GPU does.",
    )
    ephemeral_storage: Disk = Field(
        DEFAULT_DISK,
        description="Most that one replica may write to its node's disk: a model from the hub, copies of adapters, "
        "compiled code, logs. The kubelet evicts one that writes more. 1Gi of it is requested.",
    )


class EngineLora(Model):
    """Adapters that may be loaded while the engine runs."""

    max_adapters: int = Field(
        4, ge=1, le=256, description="Adapters at the same time. One more place is kept free, to change a version."
    )
    max_rank: int = Field(
        16,
        ge=1,
        le=MAX_RANK,
        description="Highest rank of an adapter. vLLM reserves memory from the start for the next of its own ranks: "
        "1, 8, 16, 32, 64, 128, 256, 320, 512.",
    )
    volume_claims: tuple[Name, ...] = Field(
        (),
        max_length=16,
        description="PersistentVolumeClaims with adapters. They are mounted read-only from the start, so an adapter "
        "can be loaded without a restart.",
    )
    credentials: Credentials | None = Field(
        None,
        description="What opens adapters in object stores and on the hub. It is mounted from the start, into the agent "
        "alone.",
    )
    chat_templates: AdapterTemplates = Field(
        AdapterTemplates.ANY,
        description="Which chat templates adapters may bring. A template is a program that vLLM runs for each request, "
        "in the process that serves everybody. Any: each that ends soon, and takes little memory, for a few short "
        "conversations. Known: the engine's own and the built-in ones; for adapters of people who are not trusted.",
    )


Domain = Annotated[
    str,
    StringConstraints(pattern=r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?\.)*[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=253),
    Remedy("write a host name in lower case, such as images.example.org"),
]


ServedName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?$", max_length=128),
    Remedy("write a model's name of letters, digits and '.', '_', ':', '-' or '/', such as org/name"),
]


class Serving(Model):
    """vLLM's own settings. Absent fields are vLLM's defaults."""

    max_model_length: int | None = Field(
        None, ge=16, le=10_485_760, description="Longest request in tokens, the answer included."
    )
    max_concurrent_requests: int | None = Field(
        None, ge=1, le=4096, description="Requests in one batch; more are queued."
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field("auto", description="Precision.")
    gpu_memory_utilization: Utilization = Field(
        "0.90", description="Share of a GPU's memory that vLLM takes. On a CPU it has no meaning."
    )
    enforce_eager: bool = Field(False, description="Skip compilation: a faster start, slower answers.")
    allowed_media_domains: tuple[Domain, ...] = Field(
        (),
        max_length=32,
        description="Hosts from which vLLM may fetch images, audio and video that a request names by URL. Each is a "
        "whole name, and redirects are not followed. Absent: none; media can only be inside the request (data:).",
    )


class Preemption(Model):
    """What the engine lends. Lending at all is the engine's choice."""

    policy: LendingPolicy = Field(
        LendingPolicy.NEVER,
        description="Never: nothing is lent. ScaleDown: whole replicas are lent. They drain, stop, and start again "
        f"when the job that borrowed their GPUs has ended. Sleep ({EXPERIMENTAL}): in pools of sharing mode DRA, "
        "replicas drain and keep their pods. vLLM frees the GPUs' memory, and wakes in seconds.",
    )
    sleep_level: Literal[1, 2] = Field(
        1,
        description=f"{EXPERIMENTAL} With policy Sleep: 1 keeps the weights in the host's memory, 2 reads them again "
        "from the volume.",
    )
    min_replicas: int = Field(
        1,
        ge=0,
        le=1000,
        description="Replicas that are never lent: the floor. A floor above spec.replicas means all of them.",
    )
    priority: int = Field(
        0, ge=-1000, le=1000, description="A job borrows only from engines of a lower or equal priority."
    )
    lend_to: LendTo = Field(
        LendTo.SAME_NAMESPACE,
        description="Which jobs may borrow. SameNamespace: those of the engine's own namespace. Anywhere: those of "
        "any. Selected: those of the namespaces that lendToNamespaces selects.",
    )
    lend_to_namespaces: NamespaceSelector | None = Field(
        None, description="With lendTo: Selected, the namespaces whose jobs may borrow."
    )
    borrow_windows: tuple[BorrowWindow, ...] = Field(
        (),
        max_length=14,
        description="Hours of the week in which the engine lends. A loan that has begun continues after them. Absent: "
        "always.",
    )
    cool_down_seconds: int = Field(
        60,
        ge=0,
        le=86_400,
        description="An engine that has got a replica back lends nothing for this long, and nothing before that "
        "replica serves again (for at most ten minutes). 0: no pause. If another job is next in line when a loan "
        "ends, it takes the loan over before the replica starts, without this pause.",
    )
    reclaim: Reclaim = Field(
        Reclaim.NEVER,
        description="Never: a loan lasts until the job ends. OnDemand: when the engine needs its replicas, the job "
        "that borrows saves a checkpoint, gives the GPUs back and waits for its next turn. The engine needs them when "
        "spec.replicas is more than it has GPUs for, or when its load is above reclaimAbove.",
    )
    reclaim_above: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="With reclaim: OnDemand, the number of requests in flight per serving replica, averaged over half "
        "a minute, above which a lent replica is asked back. A replica is also lent only if the rest would stay below "
        "it.",
    )
    drain_timeout_seconds: int = Field(
        30, ge=0, le=3600, description="Longest time that requests in flight may take before a lent replica stops."
    )

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "(has(self.lendTo) && self.lendTo == 'Selected') == has(self.lendToNamespaces)",
                "lendToNamespaces belongs to lendTo: Selected; write both or neither",
                at=".lendToNamespaces",
            ),
            Rule(
                "!has(self.reclaimAbove) || (has(self.reclaim) && self.reclaim == 'OnDemand')",
                "reclaimAbove belongs to reclaim: OnDemand; write both or neither",
                at=".reclaimAbove",
            ),
        )
    )


class InferenceEngineSpec(Model):
    """A model served by vLLM on N replicas, and what it lends."""

    model: ServedModel = Field(description="The base model.")
    served_names: tuple[ServedName, ...] = Field(
        (),
        max_length=16,
        description="More names for the base model in the `model` of a request, such as meta-llama/Llama-3.1-8B.",
    )
    task: Literal["Generate", "Embed"] = Field("Generate", description="What requests ask for.")
    replicas: int = Field(
        1,
        ge=0,
        le=1000,
        description="How many replicas should serve. A HorizontalPodAutoscaler may write it through /scale.",
    )
    resources: EngineResources = Field(default_factory=EngineResources, description="What one replica needs.")
    lora: EngineLora | None = Field(None, description="Adapters that may be loaded. Absent: none.")
    serving: Serving = Field(default_factory=Serving, description="vLLM's own settings.")
    clients: Clients = Field(default_factory=Clients, description="Who may send requests to the engine.")
    image_pull_secrets: tuple[SecretName, ...] = Field(
        (),
        max_length=16,
        description="Secrets of this namespace with which replicas pull their image. Empty: those of the chart "
        "(images.workloadPullSecrets). A change restarts the replicas, one at a time.",
    )
    preemption: Preemption = Field(
        default_factory=Preemption, description="What the engine lends, to whom, down to which floor."
    )

    @property
    def addresses(self) -> dict[str, str]:
        """Every address that its pods read from their start, by the field that has it."""
        template = self.model.chat_template
        claims = self.lora.volume_claims if self.lora else ()
        return {
            "model.uri": self.model.uri,
            **({"model.chatTemplate.uri": template.uri} if template and template.uri else {}),
            **({"model.cacheClaim": f"pvc://{self.model.cache_claim}"} if self.model.cache_claim else {}),
            **{f"lora.volumeClaims[{number}]": f"pvc://{name}" for number, name in enumerate(claims)},
        }


class SlotState(StrEnum):
    """What one replica does."""

    STARTING = "Starting"
    SERVING = "Serving"
    DRAINING = "Draining"
    LENT = "Lent"
    WAITING = "Waiting"
    """No GPU is free for it."""
    STOPPING = "Stopping"
    RECLAIMING = "Reclaiming"
    """It is lent, and the engine asks for it back."""
    SLEEPING = "Sleeping"
    """It has drained and goes to sleep; it is lent once its agent says that it sleeps."""


ASLEEP = frozenset({SlotState.SLEEPING, SlotState.LENT, SlotState.RECLAIMING})
"""States in which a slot that keeps its pod takes no memory of its GPUs: the trainer's come, are there, or still go."""

AWAKE = frozenset({SlotState.STARTING, SlotState.SERVING})
"""States in which nobody else uses the slot's GPUs. In any other its vLLM neither wakes nor starts."""


class SlotStatus(Model):
    """One replica. The agent in its pod reads `state` here to know when to drain."""

    index: NonNegativeInt = Field(description="Index of the replica.")
    state: SlotState = Field(
        description="Starting, Serving, Draining, Sleeping, Stopping, Lent, Reclaiming or Waiting."
    )
    pod: Text = Field("", description="Its pod.")
    lent_to: Text = Field("", description="The job that borrows its GPUs, as namespace/name.")
    since: Time | None = Field(None, description="When it got into this state.")


class InferenceEngineStatus(Model):
    """What the engine does now. Nothing that decides lives only here."""

    observed_generation: NonNegativeInt = Field(0, description="Generation of the spec that this status describes.")
    conditions: tuple[Condition, ...] = Field((), max_length=8, description="Ready and Lent.")
    replicas: NonNegativeInt = Field(0, description="Replicas that exist; what the scale subresource shows.")
    ready_replicas: NonNegativeInt = Field(0, description="Replicas that answer.")
    ready: Text = Field("", description="readyReplicas and spec.replicas for a reader: 1/2.")
    lent: NonNegativeInt = Field(0, description="Replicas lent to jobs.")
    lent_to: tuple[Text, ...] = Field((), max_length=1000, description="The jobs that borrow them, as namespace/name.")
    selector: Text = Field("", description="Label selector of the replicas' pods, for the scale subresource.")
    slots: tuple[SlotStatus, ...] = Field((), max_length=1000, description="Each replica.")
    served_model: Text = Field("", description="The `model` of a chat request that asks the base model.")


class InferenceEngine(Resource):
    """A model served by vLLM, whose replicas may lend their GPUs to fine-tuning jobs."""

    KIND: ClassVar[Kind] = Kind(
        kind="InferenceEngine",
        plural="inferenceengines",
        short_names=("ie",),
        columns=(
            Column("Model", ".spec.model.uri"),
            Column("Ready", ".status.ready"),
            Column("Lent", ".status.lent", "integer"),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
        scale={
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    )

    spec: InferenceEngineSpec
    status: InferenceEngineStatus = Field(default_factory=InferenceEngineStatus)

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "self.metadata.name.matches(r'^[a-z]([-a-z0-9]{0,48}[a-z0-9])?$')",
                "metadata.name: write at most 50 lower-case letters, digits and '-', a letter first: "
                "the engine's Service has the same name, its replicas a number behind it",
            )
        )
    )
