"""Group, labels, annotations and names: the strings by which objects find each other."""

GROUP = "sluice.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
CATEGORY = "sluice"

FIELD_MANAGER = "sluice"
PROGRESS_FIELD_MANAGER = "sluice-progress"

JOB_LABEL = f"{GROUP}/job"
"""On every child of a FineTuneJob: the job's name."""
STAGE_LABEL = f"{GROUP}/stage"
"""On stage Jobs and their pods: Prepare, Train or Export."""
ATTEMPT_LABEL = f"{GROUP}/attempt"
"""On stage Jobs and their pods: counts the attempts of the stage, from 1."""
JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
"""On the pods of a Job: its name. The Job controller sets it."""
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
"""On the pods of a Job of several: which one. The Job controller sets it."""
ENGINE_LABEL = f"{GROUP}/engine"
"""On every child of an InferenceEngine: the engine's name."""
SLOT_LABEL = f"{GROUP}/slot"
"""On a slot's Deployment and pod: the slot's index."""
PLACEHOLDER_LABEL = f"{GROUP}/placeholder"
"""On a placeholder: its engine's name. Not ENGINE_LABEL, by which Services and autoscalers find replicas."""
SCALE_UP_LABEL = f"{GROUP}/scale-up"
"""On a pod that asks for a node: the pool's name. Not JOB_LABEL, by which a stage's pods are found."""
TRUST_LABEL = f"{GROUP}/trust"
"""On the ConfigMap by which pods of a namespace know the operator. It has no owner: by this it is known to be ours."""
LEADER_LABEL = f"{GROUP}/leader"
"""On the pod of the operator replica that leads; the progress Service selects it."""

CLAIM_ANNOTATION = f"{GROUP}/claim"
"""On a training Job: the Claim it is, as JSON. Never changed after the Job was created."""
OUTCOMES_ANNOTATION = f"{GROUP}/outcomes"
"""On a FineTuneJob: how each attempt of each stage ended, as JSON. Outlives the Jobs."""
TEMPLATE_ANNOTATION = f"{GROUP}/template"
"""On a slot's Deployment and its pod: a digest of the pod template that the engine's spec asked for."""

RESTARTED_AT_ANNOTATION = f"{GROUP}/restarted-at"
"""On a slot's Deployment: when it was last started after it had been stopped, RFC 3339."""

BOUND_AT_ANNOTATION = f"{GROUP}/bound-at"
"""On a training pod: when its scheduling gate came off, RFC 3339."""

SCHEDULING_GATE = f"{GROUP}/claim"
"""On the pods of a training Job until the claim is bound."""
PLACEHOLDER_GATE = f"{GROUP}/placeholder"
"""On a placeholder, for ever: it never runs."""

HIGHEST_INDEX = 9999
"""Of a replica. An engine has at most 1,000, and a new one takes the first number that is free."""

HIGHEST_ATTEMPT = 1_000_000
"""Of a stage of a job."""

DEFAULT_GPU_RESOURCE = "nvidia.com/gpu"
DEFAULT_DEVICE_CLASS = "gpu.nvidia.com"
EXPERIMENTAL = "Experimental: has run on no GPU yet."
"""In the description of a field: at its begin, or in brackets behind the one value that it is about."""

DEFAULT_POOL = "default"


def short_uid(uid: str) -> str:
    """The first eight characters of a uid, which tell two jobs of the same name apart."""
    return uid.replace("-", "")[:8]


def stage_job_name(job: str, uid: str, stage: str, attempt: int) -> str:
    """Name of the batch/v1 Job of one attempt of one stage, at most 60 characters: `-<index>` makes it a host name."""
    return _fitting(job, f"-{short_uid(uid)}-{stage.lower()}-{attempt}", 60)


def group_service_name(job: str, uid: str) -> str:
    """Name of the Service by which the training pods of one job find each other."""
    return _fitting(job, f"-{short_uid(uid)}-train", 63)


def engine_network_name(engine: str) -> str:
    """Name of the NetworkPolicy about an engine's pods."""
    return f"{engine}-network"


def job_network_name(job: str, uid: str) -> str:
    """Name of the NetworkPolicy about the pods of one job."""
    return _fitting(job, f"-{short_uid(uid)}-network", 63)


def _fitting(name: str, tail: str, longest: int) -> str:
    return f"{name[: longest - len(tail)].rstrip('-')}{tail}"


def work_folder(job: str, uid: str) -> str:
    """Name of the folder under output.uri that belongs to one job alone."""
    return f"{job}-{short_uid(uid)}"


def index_of(label: str) -> int | None:
    """The number in a label, of a replica or of a pod of several; None for what is none that Sluice ever wrote."""
    return int(label) if label.isascii() and label.isdecimal() and len(label) <= len(str(HIGHEST_INDEX)) else None


def slot_name(engine: str, index: int) -> str:
    """Name of a slot's Deployment."""
    return f"{engine}-{index}"


def slot_gpus_name(engine: str, index: int) -> str:
    """Name of the ResourceClaim of a slot's GPUs, where they are served by DRA."""
    return f"{slot_name(engine, index)}-gpus"


def training_gpus_name(job: str, uid: str, device_class: str, count: int) -> str:
    """Name of the ResourceClaimTemplate from which a job's training pods get so many GPUs: of all its attempts."""
    return f"{job}-{short_uid(uid)}-{device_class}-{count}"


def taints_of_gpus(name: str) -> tuple[str, ...]:
    """Keys of the taints by which nodes with such GPUs commonly keep everything else away.

    The name by which they are counted; of a driver, gpu.nvidia.com, also what the device plugin calls them,
    nvidia.com/gpu.
    """
    kind, _, vendor = name.partition(".")
    return (name,) if is_extended(name) else (name, f"{vendor}/{kind}")


def is_extended(name: str) -> bool:
    """Whether GPUs of that name are an extended resource of nodes: its name has a domain, a driver's is one."""
    return "/" in name


def placeholder_name(engine: str, index: int) -> str:
    """Name of the pod that keeps a lent slot's GPUs."""
    return f"{slot_name(engine, index)}-placeholder"


def scale_up_name(job: str, uid: str, index: int) -> str:
    """Name of the pod that asks for a node for one of a job's training pods."""
    return _fitting(job, f"-{short_uid(uid)}-scale-up-{index}", 63)


def adapter_version(name: str, digest: str) -> str:
    """The adapter's name inside vLLM: it never repeats for other bytes."""
    return f"{name}--{digest.removeprefix('sha256:')[:12]}"
