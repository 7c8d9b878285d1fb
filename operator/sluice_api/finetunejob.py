"""FineTuneJob: what to train, on what, how, with which GPUs, and where the result goes."""

from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field, NonNegativeInt, StringConstraints

from sluice_api.chat_template import ChatTemplate
from sluice_api.conditions import Condition
from sluice_api.data_summary import Data
from sluice_api.dataset import Dataset
from sluice_api.meta import DEFAULT_POOL, EXPERIMENTAL
from sluice_api.model import Controller, Disk, Memory, Message, Model, Name, Quantity, Seconds, SecretName, Text, Time
from sluice_api.pods import DEFAULT_DISK
from sluice_api.publish import Publish
from sluice_api.reports import LONGEST_ESTIMATE
from sluice_api.resource import DNS_LABEL_NAME, Column, Kind, Resource, Rule, rules
from sluice_api.scheduling import Retry, Scheduling
from sluice_api.sources import Credentials, FolderUri, ModelUri, claims_of, config_maps_of, takes_credentials
from sluice_api.training import Lora, Method, Training

MOST_ATTEMPTS = 100
"""Attempts that a status shows."""


class ModelSource(Model):
    """The base model."""

    uri: ModelUri = Field(
        description="Where the base model is: pvc://claim/path, hf://org/name@revision, or s3://bucket/path (gs:// "
        "and az:// too). A folder with config.json, tokenizer files and weights as safetensors, or as *.bin."
    )
    credentials: Credentials | None = Field(
        None, description="What opens the address, such as a gated model's. Absent: nothing is needed."
    )
    chat_template: ChatTemplate | None = Field(
        None,
        description="How turns become text, instead of the model's own chat template. It goes with the result, so that "
        "engines use the same. Absent: the model's own.",
    )


class JobResources(Model):
    """What training needs: one pod, or several that train together."""

    gpus: int = Field(1, ge=1, le=64, description="GPUs of each training pod, all on one node.")
    nodes: int = Field(
        1,
        ge=1,
        le=64,
        description="Training pods that work as one (torchrun's nodes), each with `gpus` GPUs. They get their GPUs "
        "all at once or not at all. Two may share a node that has room for both. All GPUs share the rows of a step.",
    )
    pool: Name = Field(DEFAULT_POOL, description="The GPUPool of these GPUs.")
    gpu_memory: Quantity | None = Field(
        None,
        description="Memory that each GPU must have, such as 40Gi. It is compared with the node's label "
        "nvidia.com/gpu.memory, which NVIDIA's GPU feature discovery sets. Absent: any GPU of the pool will do.",
    )
    memory: Memory = Field("8Gi", description="Memory request and limit of each training pod.")
    cpu: Quantity = Field(
        "1",
        description="CPU request of each training pod, which has no limit. As many threads, at least one, compute "
        "what no GPU does.",
    )
    ephemeral_storage: Disk = Field(
        DEFAULT_DISK,
        description="Most that each pod of the job may write to its node's disk: a model or a dataset from the hub, "
        "temporary files, logs. The kubelet evicts one that writes more. 1Gi of it is requested.",
    )

    @property
    def all_gpus(self) -> int:
        """GPUs of all training pods."""
        return self.gpus * self.nodes


class Output(Model):
    """Where the result goes."""

    uri: FolderUri = Field(
        description="pvc://claim/path, or s3://bucket/path (gs:// and az:// too). The job writes only into "
        "<uri>/<job>-<uid8>/: prepared/, checkpoints/ and export/."
    )
    credentials: Credentials | None = Field(None, description="What opens the address. Absent: nothing is needed.")


UNCHANGED = "cannot be changed: delete the job and create it again, or create another one"
IMMUTABLE = rules(Rule("self == oldSelf", UNCHANGED))
"""On each field itself: rules of the whole spec that look at two fields cost the API server several times as much, at
every write of every job. One that can be absent needs a rule of the spec too."""


class FineTuneJobSpec(Model):
    """What to train, on what, how, with which GPUs, and where the result goes."""

    model: ModelSource = Field(description="The base model.", json_schema_extra=IMMUTABLE)
    dataset: Dataset = Field(description="The rows to learn from.", json_schema_extra=IMMUTABLE)
    method: Method = Field(
        Method.LORA,
        description="LoRA trains a small adapter beside the frozen model. QLoRA does the same with the model's "
        "weights in 4 bits, which takes a quarter of their memory. Full trains all weights and exports a whole model.",
        json_schema_extra=IMMUTABLE,
    )
    lora: Lora = Field(
        default_factory=Lora, description="Shape of the adapter. Method Full has none.", json_schema_extra=IMMUTABLE
    )
    training: Training = Field(default_factory=Training, description="How to learn.", json_schema_extra=IMMUTABLE)
    resources: JobResources = Field(
        default_factory=JobResources, description="What training needs.", json_schema_extra=IMMUTABLE
    )
    scheduling: Scheduling = Field(default_factory=Scheduling, description="When the job gets GPUs, and from whom.")
    output: Output = Field(description="Where the result goes.", json_schema_extra=IMMUTABLE)
    resume_from: FolderUri | None = Field(
        None,
        description="The folder of an older job, such as pvc://claim/path/<job>-<uid8>. It is opened with "
        "output.credentials. Training continues from its newest "
        "checkpoint. Base model, rows, method and settings must be those of that job: Prepare compares them, and "
        "names what differs. Absent: training begins at step 0.",
        json_schema_extra=IMMUTABLE,
    )
    publish: Publish | None = Field(
        None,
        description="The engine that serves the result. Absent: no engine serves it.",
        json_schema_extra=rules(
            Rule("self.engine == oldSelf.engine", UNCHANGED, at=".engine"),
            Rule("self.name == oldSelf.name", UNCHANGED, at=".name"),
        ),
    )
    active_deadline_seconds: Seconds = Field(
        86_400,
        description="Longest time of training, over all attempts. It counts from each claim of GPUs until its pod has "
        "ended, with the drain of borrowed replicas and the pod's start. Waiting does not count. A job that takes "
        "longer has failed.",
        json_schema_extra=IMMUTABLE,
    )
    stage_deadline_seconds: Seconds = Field(
        3600,
        description="Longest time of Prepare, and of Export, from the creation of its batch/v1 Job. A job that takes "
        "longer has failed.",
        json_schema_extra=IMMUTABLE,
    )
    retry: Retry = Field(
        default_factory=Retry, description="What happens when an attempt fails.", json_schema_extra=IMMUTABLE
    )
    ttl_seconds_after_finished: int | None = Field(
        None,
        ge=0,
        le=315_360_000,
        description="The job is deleted this long after it has succeeded or failed. Its output and its Adapter stay. "
        "Absent: it is kept.",
    )
    suspend: bool = Field(
        False, description="True stops the job. If it is running, it saves a checkpoint and gives its GPUs back."
    )
    image_pull_secrets: tuple[SecretName, ...] = Field(
        (),
        max_length=16,
        description="Secrets of this namespace with which the job's pods pull their image. Empty: those of the chart "
        "(images.workloadPullSecrets). A change applies to pods that are made later.",
    )
    managed_by: Controller | None = Field(
        None,
        description="Another controller that runs this job. If set, Sluice does nothing with it.",
        json_schema_extra=IMMUTABLE,
    )

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "self.scheduling.policy != 'Shared' || self.resources.gpus * self.resources.nodes == 1",
                "must be 1, like nodes, with scheduling.policy Shared: a share is of one GPU",
                at=".resources.gpus",
            ),
            Rule(
                "self.scheduling.policy != 'Shared' || !has(self.scheduling.scaleUpFirst)",
                "leave it out with policy Shared, or use Queue or Preempt: a share is of a GPU that is there",
                at=".scheduling.scaleUpFirst",
            ),
            Rule(
                "self.method != 'Full' || !has(self.publish)",
                "leave it out with method Full: engines load adapters; the whole model is an engine's model.uri",
                at=".publish",
            ),
            Rule(
                "self.method != 'Full' || self.dataset.format != 'Preference'",
                "use LoRA or QLoRA for rows of Preference: they are compared with the model without its adapter",
                at=".method",
            ),
            Rule(
                "self.method != 'QLoRA' || self.training.sharding != 'Always'",
                "use Auto or Never with method QLoRA: 4-bit weights are not sharded; they fit four times as well",
                at=".training.sharding",
            ),
            Rule(
                "has(self.training.batchTokens) || "
                "self.training.batchSize >= self.resources.gpus * self.resources.nodes",
                "must be at least resources.gpus x resources.nodes: each GPU needs a row",
                at=".training.batchSize",
            ),
            *(
                Rule(f"has(self.{name}) == has(oldSelf.{name})", UNCHANGED, at=f".{name}")
                for name in ("publish", "resumeFrom", "managedBy")
            ),
        )
    )

    @property
    def addresses(self) -> dict[str, str]:
        """Every address that its pods read or write, by the field that has it, such as dataset.sources[0].uri."""
        template = self.model.chat_template
        return {
            "model.uri": self.model.uri,
            **({"model.chatTemplate.uri": template.uri} if template and template.uri else {}),
            **self.dataset.addresses,
            "output.uri": self.output.uri,
            **({"resumeFrom": self.resume_from} if self.resume_from else {}),
        }

    @property
    def volumes(self) -> tuple[str, ...]:
        """The PersistentVolumeClaims that its pods mount, each once."""
        return claims_of(*self.addresses.values())

    @property
    def config_maps(self) -> tuple[str, ...]:
        """The ConfigMaps that its pods read, each once."""
        return config_maps_of(*self.addresses.values())

    def secrets(self, *, reads_dataset: bool) -> tuple[str, ...]:
        """The Secrets that open the addresses of a pod, each once: of model and output, and of the rows where those
        are read."""
        template = self.model.chat_template
        of_model = [self.model.uri, template.uri if template else None]
        opened = [(self.model.credentials, of_model), (self.output.credentials, [self.output.uri, self.resume_from])]
        if reads_dataset:
            words = [step.filter.words_from for step in self.dataset.steps if step.filter]
            opened += [(files.credentials, [files.uri]) for files in self.dataset.all_files]
            opened += [(self.dataset.credentials, words)]
        needed = (
            credentials.secret
            for credentials, uris in opened
            if credentials and any(uri and takes_credentials(uri) for uri in uris)
        )
        return tuple(dict.fromkeys(needed))


class Progress(Model):
    """How far training is, as the trainer reports it."""

    activity: Text = Field("", description="What the trainer is doing now.")
    step: NonNegativeInt = Field(0, description="Optimizer steps done, over all attempts.")
    total_steps: NonNegativeInt = Field(0, description="Optimizer steps of the whole job.")
    percent: Text = Field("", description="step and totalSteps for a reader: 120/300.")
    epoch: Text = Field("", description="Passes over the training rows, as a decimal string.")
    loss: Text = Field("", description="Training loss in nats, as a decimal string.")
    evaluation_loss: Text = Field("", description="Loss on the held-out rows in nats, as a decimal string.")
    learning_rate: Text = Field("", description="Learning rate of the last step, as a decimal string.")
    gradient_norm: Text = Field("", description="Norm of the last step's gradients before clipping.")
    tokens_per_second: Text = Field("", description="Real tokens a second, as a decimal string.")
    gpu_memory: Text = Field("", description="Peak GPU memory of this attempt, as a quantity.")
    memory: Text = Field("", description="Peak host memory of this attempt's first process, as a quantity.")
    seconds_left: int | None = Field(
        None, ge=0, le=LONGEST_ESTIMATE, description="The trainer's estimate to its last step."
    )
    time_left: Text = Field("", description="secondsLeft for a reader: 4m10s.")
    checkpoint_step: NonNegativeInt | None = Field(None, description="Step of the newest durable checkpoint.")
    unsaved: Message = Field(
        "", description="Why the last checkpoint could not be saved. Training goes on, and the next save tries again."
    )
    attempt: NonNegativeInt = Field(0, description="The attempt that reported.")
    reported_at: Time | None = Field(None, description="When it reported, by the operator's clock.")


class BorrowedSlot(Model):
    """A replica that an engine lends to this job."""

    engine: Text = Field(description="The engine, as namespace/name.")
    slot: NonNegativeInt = Field(description="Index of the replica.")


class QueuePlace(Model):
    """The job's place among those that wait for GPUs of the pool."""

    position: Text = Field(
        "", description="1 is the next. Exact for the first ten, then `more than 10`, `more than 100`, and so on."
    )
    since: Time | None = Field(None, description="When it began to wait.")
    estimated_start: Time | None = Field(
        None,
        description="When it may start, by the time left that the running trainers report. Absent: not known.",
    )


class Allocation(Model):
    """The GPUs that the job holds, as its training Job's claim says. A mirror: it decides nothing."""

    nodes: tuple[Text, ...] = Field((), max_length=64, description="The nodes.")
    gpus: NonNegativeInt = Field(0, description="How many GPUs, on all nodes together.")
    borrowed: tuple[BorrowedSlot, ...] = Field((), max_length=64, description="Replicas lent by engines.")
    beside: Text = Field(
        "",
        description=f"{EXPERIMENTAL} The replica whose GPU the job shares, as engine/slot, where DRA serves the GPUs.",
    )
    expected_return: Time | None = Field(
        None,
        description="When they are given back, by the time left that the trainer reports. Absent: not known.",
    )


_LOST_STEPS_UNKNOWN = (
    "Absent while that is not known. After training was told to stop, the next attempt says it when it ends."
)


class AttemptRecord(Model):
    """How one attempt to train ended."""

    attempt: NonNegativeInt = Field(description="Counts from 1.")
    reason: Text = Field(description="Why it ended, a word from docs/reasons.md.")
    message: Message = Field("", description="Why, for a person.")
    step: NonNegativeInt = Field(0, description="The last step that was reported.")
    resumed_from: NonNegativeInt | None = Field(None, description="The step of the checkpoint from which it continued.")
    lost_steps: NonNegativeInt | None = Field(None, description=f"Steps reported but not saved. {_LOST_STEPS_UNKNOWN}")


class InterruptionRecord(Model):
    """Training that gave way."""

    attempt: NonNegativeInt = Field(description="The attempt that ended.")
    reason: Text = Field(description="Preempted, Reclaimed or Suspended.")
    by: Text = Field("", description="The job or the engine that has the GPUs now, as namespace/name.")
    at: Time | None = Field(None, description="When.")
    lost_steps: NonNegativeInt | None = Field(None, description=f"Steps that are done again. {_LOST_STEPS_UNKNOWN}")


class Result(Model):
    """What came out."""

    uri: Annotated[str, StringConstraints(max_length=1024)] = Field(
        "", description="Folder of the exported adapter or model."
    )
    digest: Text = Field("", description="Digest of the files in it, sha256:...")
    evaluation_loss_before: Text = Field("", description="Loss on the held-out rows before training, nats.")
    evaluation_loss_after: Text = Field("", description="Loss on the held-out rows after training, nats.")


class FineTuneJobStatus(Model):
    """Where the job is. Nothing that decides lives only here."""

    observed_generation: NonNegativeInt = Field(0, description="Generation of the spec that this status describes.")
    conditions: tuple[Condition, ...] = Field(
        (), max_length=16, description="The job's state: Prepared, Admitted, Trained, Exported, Published, Succeeded."
    )
    summary: Text = Field("", description="The reason that matters most now, for the STATUS column.")
    attempt: NonNegativeInt = Field(0, description="The newest attempt to train; 0 before the first.")
    attempts: tuple[AttemptRecord, ...] = Field(
        (), max_length=MOST_ATTEMPTS, description="How earlier attempts ended; the newest, if there are many."
    )
    interruptions: tuple[InterruptionRecord, ...] = Field(
        (), max_length=MOST_ATTEMPTS, description="When training gave way, and to whom. They cost no attempt."
    )
    queue: QueuePlace | None = Field(None, description="The job's place in the queue, while it waits for GPUs.")
    allocation: Allocation | None = Field(None, description="The GPUs that the job holds now.")
    data: Data | None = Field(None, description="What Prepare found in the dataset.")
    result: Result | None = Field(None, description="What came out.")
    progress: Progress | None = Field(None, description="How far training is.")
    started_at: Time | None = Field(None, description="When the job was first given GPUs.")
    finished_at: Time | None = Field(None, description="When the job succeeded or failed for good.")


class FineTuneJob(Resource):
    """A fine-tuning job that may borrow GPUs from inference engines while it trains."""

    KIND: ClassVar[Kind] = Kind(
        kind="FineTuneJob",
        plural="finetunejobs",
        short_names=("ftj",),
        columns=(
            Column("Model", ".spec.model.uri"),
            Column("Status", ".status.summary"),
            Column("Progress", ".status.progress.percent"),
            Column("Epoch", ".status.progress.epoch"),
            Column("Loss", ".status.progress.loss"),
            Column("ETA", ".status.progress.timeLeft"),
            Column("GPUs", ".status.allocation.gpus", "integer"),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
    )

    spec: FineTuneJobSpec
    status: FineTuneJobStatus = Field(default_factory=FineTuneJobStatus)

    model_config = ConfigDict(
        json_schema_extra=rules(
            DNS_LABEL_NAME,
            Rule(
                "!has(self.status) || !has(self.status.allocation) || self.spec.scheduling == oldSelf.spec.scheduling",
                "cannot be changed while the job holds GPUs: suspend it first",
                at=".spec.scheduling",
            ),
        )
    )
