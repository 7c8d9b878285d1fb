"""Every reason that a condition, an attempt or a report may give, with its meaning and the user's next step.

docs/reasons.md is generated from here.
"""

from sluice_api.explained import Explained


class Reason(Explained):
    """A closed list: code, tests and docs use these names and no others."""

    # A job on its way
    PENDING = "Pending", "The operator has seen the object and not decided yet.", "Nothing; this takes a moment."
    PREPARING = "Preparing", "A CPU pod reads, checks and tokenises the dataset.", "Nothing; see status.progress."
    WAITING_TO_PREPARE = (
        "WaitingToPrepare",
        "In the pool, or for this namespace in it, as many jobs prepare their data already as the pool allows.",
        "Wait until one of them is done, or raise spec.prepare in the GPUPool.",
    )
    PREPARED = "Prepared", "The dataset is tokenised.", "Nothing."
    WAITING_FOR_GPUS = (
        "WaitingForGPUs",
        "No GPU is free, and none may be borrowed.",
        "Wait for the blocker that the message names, or set scheduling.policy: Preempt.",
    )
    BEHIND_IN_QUEUE = (
        "BehindInQueue",
        "A job in front of this one waits for the same GPUs.",
        "Wait, or raise scheduling.priority.",
    )
    ENGINE_AT_FLOOR = (
        "EngineAtFloor",
        "The engines that lend are at their minReplicas.",
        "Lower preemption.minReplicas, or raise the engine's replicas.",
    )
    ENGINE_NEVER_LENDS = (
        "EngineNeverLends",
        "The engines in the pool do not lend.",
        "Set preemption.policy: ScaleDown on an engine.",
    )
    ENGINE_CANNOT_SLEEP = (
        "EngineCannotSleep",
        "preemption.policy is Sleep, but the pool gives a GPU to one pod alone: a sleeping replica would keep it.",
        "Set preemption.policy: ScaleDown, or use a GPUPool of sharing.mode: DRA.",
    )
    ENGINE_NOT_READY_TO_SLEEP = (
        "EngineNotReadyToSleep",
        "Only replicas that serve can sleep, and the engine that lends has none that serves with its present spec.",
        "Wait until they serve; see the engine's status.slots.",
    )
    ENGINE_LENDS_ELSEWHERE = (
        "EngineLendsElsewhere",
        "The engines that lend do not lend to this namespace.",
        "Set preemption.lendTo: Anywhere on an engine, or run the job in its namespace.",
    )
    ENGINE_PRIORITY_HIGHER = (
        "EnginePriorityHigher",
        "The engines that lend have a higher priority than the job.",
        "Raise the job's scheduling.priority, or lower the engine's preemption.priority.",
    )
    ENGINE_LENDS_LATER = (
        "EngineLendsLater",
        "The engines that lend do so at other hours.",
        "Wait for the hour that the message names, or widen preemption.borrowWindows.",
    )
    TIME_ZONE_UNKNOWN = (
        "TimeZoneUnknown",
        "A borrow window names a time zone that does not exist, so it never opens.",
        "Write a name of the IANA database in preemption.borrowWindows, such as Europe/Berlin.",
    )
    ENGINE_COOLS_DOWN = (
        "EngineCoolsDown",
        "The engines that lend have just got a replica back.",
        "Wait for the end of the pause, or lower preemption.coolDownSeconds.",
    )
    ENGINE_PROTECTED = (
        "EngineProtected",
        "A PodDisruptionBudget lets no replica of the engine that lends go now.",
        "Wait until it does, or change the budget.",
    )
    ENGINE_MUST_SLEEP = (
        "EngineMustSleep",
        "Where DRA serves the GPUs, only replicas that sleep are lent: others could lose theirs to another pod.",
        "Set preemption.policy: Sleep on the engine.",
    )
    ENGINE_HAS_GUESTS = (
        "EngineHasGuests",
        "Jobs of policy Shared train beside each replica of the engine that lends.",
        "Wait until one ends, or raise the engine's replicas.",
    )
    MULTI_NODE_BORROWS_NONE = (
        "MultiNodeBorrowsNone",
        "A job of several pods cannot borrow GPUs that DRA serves.",
        "Wait for free GPUs, or set resources.nodes: 1.",
    )
    ENGINE_IN_DEMAND = (
        "EngineInDemand",
        "The engines that lend need their replicas themselves.",
        "Wait until the engine has less load, or change preemption.reclaim or reclaimAbove.",
    )
    NAMESPACE_QUOTA = (
        "NamespaceQuota",
        "The namespace holds, or would hold, more GPUs of the pool than its quota there allows.",
        "Wait until another job of the namespace ends, or raise the quota in the GPUPool's spec.quotas.",
    )
    SCALING_UP = (
        "ScalingUp",
        "The job asks a cluster autoscaler for nodes (scheduling.scaleUpFirst) and borrows nothing meanwhile.",
        "Wait for a node, lower scheduling.scaleUpFirst.waitSeconds, or remove the field to borrow at once.",
    )
    WAITING_FOR_SHARE = (
        "WaitingForShare",
        "No replica of the job's namespace has enough of its GPU's memory left for the job now.",
        "Wait until a replica starts or a job beside one ends, or lower scheduling.share.",
    )
    NOT_BEFORE = (
        "NotBefore",
        "scheduling.notBefore is in the future. The data is prepared.",
        "Wait, or set an earlier scheduling.notBefore.",
    )
    CLAIMED = "Claimed", "GPUs are set aside, and the operator checks that the pod can run.", "Nothing."
    DRAINING = (
        "Draining",
        "Borrowed replicas finish their requests.",
        "Nothing; it takes at most the engine's drainTimeoutSeconds.",
    )
    WAITING_FOR_SLEEP = (
        "WaitingForSleep",
        "Borrowed replicas free the memory of their GPUs.",
        "Nothing; this takes seconds. If it takes too long, the claim is given up.",
    )
    BINDING = "Binding", "The training pod goes to its node.", "Nothing."
    TRAINING = "Training", "The training pod runs.", "Watch: kubectl get ftj -w"
    EXPORTING = "Exporting", "The adapter is written in PEFT format; the GPUs are free already.", "Nothing."
    PUBLISHING = "Publishing", "The engine's replicas load the adapter.", "Nothing; see the Adapter's status."
    DONE = "Done", "The step is complete.", "Nothing."
    SUCCEEDED = "Succeeded", "The job is complete.", "Use the adapter."
    NOT_REQUESTED = "NotRequested", "The spec does not ask for this step.", "Nothing."
    DELETED = (
        "Deleted",
        "The object is being deleted. What still runs for it is ended, and counts until it is gone.",
        "Remove the finalizers that keep it, once their controllers are done.",
    )
    SUSPENDED = (
        "Suspended",
        "spec.suspend is true. The state is saved and the GPUs are given back.",
        "Set spec.suspend: false.",
    )
    MANAGED_ELSEWHERE = "ManagedElsewhere", "spec.managedBy names another controller.", "Look at that controller."

    # Training that gives way
    PREEMPTED = (
        "Preempted",
        "A job of higher priority has the GPUs. The state is saved.",
        "Nothing; training continues from the checkpoint as soon as it has GPUs again.",
    )
    RECLAIMED = (
        "Reclaimed",
        "The engine that lent the GPUs needs them back. The state is saved.",
        "Nothing; training continues from the checkpoint as soon as it has GPUs again.",
    )

    # Why a claim does not get further
    QUOTA_EXCEEDED = (
        "QuotaExceeded",
        "A ResourceQuota of the namespace refuses an object that is needed. The message has the API server's words.",
        "Raise the quota, delete what it counts, or lower resources.*. It is tried again after a pause that doubles.",
    )
    REFUSED_BY_ADMISSION = (
        "RefusedByAdmission",
        "A policy, a webhook, a LimitRange, Pod Security or the API server's schema refuses an object that is needed. "
        "The message has the API server's words.",
        "Change what refuses it, or the spec. It is tried again after an hour at most (for an engine after a minute).",
    )
    NAME_TAKEN = (
        "NameTaken",
        "An object that Sluice did not make for this one has the name that is needed. It is not changed.",
        "Delete it, or use another name. For an Adapter, set publish.replace: true on the job.",
    )
    UNSCHEDULABLE = (
        "Unschedulable",
        "The pod would not fit the node, for a reason other than GPUs.",
        "Lower resources.memory or resources.cpu, or free the node.",
    )
    SUSPENDED_BY_OTHER = (
        "SuspendedByOther",
        "Another queueing system suspended a Job of Sluice's.",
        "Exempt Sluice's Jobs from that system, or use spec.managedBy.",
    )
    NODE_AVOIDED = (
        "NodeAvoided",
        "The job failed on the nodes that are left a short time ago, so they are left out for a while.",
        "Wait until the moment that the message names, or repair the node.",
    )
    NOT_BOUND = (
        "NotBound",
        "The training pod was not bound to its node in time, so the claim was given up.",
        "Nothing; another claim is made, elsewhere if possible.",
    )

    ENGINE_DOES_NOT_SLEEP = (
        "EngineDoesNotSleep",
        "A borrowed replica did not free its GPUs' memory in time. The claim was given up, and the replica wakes.",
        "See the message. If it happens again, set preemption.policy: ScaleDown on the engine.",
    )

    # Refused before or by Prepare
    POOL_NOT_FOUND = "PoolNotFound", "resources.pool names no GPUPool.", "Create it, or use another pool."
    NAMESPACE_NOT_ALLOWED = (
        "NamespaceNotAllowed",
        "The pool is not for jobs of this namespace.",
        "Use another pool, or have the GPUPool's spec.allowedNamespaces select the namespace.",
    )
    PRIORITY_TOO_HIGH = (
        "PriorityTooHigh",
        "scheduling.priority is above what the pool allows the namespace.",
        "Lower scheduling.priority, or raise maxPriority in the GPUPool's spec.quotas.",
    )
    EXCEEDS_EVERY_NODE = (
        "ExceedsEveryNode",
        "No node of the pool is large enough, even when empty.",
        "Lower resources.gpus, resources.memory or resources.cpu, or add a larger node.",
    )
    EXCEEDS_POOL = (
        "ExceedsPool",
        "The pool's nodes have no room for this many pods at once, even when empty.",
        "Lower resources.nodes or resources.gpus, or add nodes.",
    )
    POOL_DOES_NOT_SHARE = (
        "PoolDoesNotShare",
        "scheduling.policy is Shared, but the pool's nodes give each GPU to one pod.",
        "Use Queue or Preempt, use another pool, or set spec.sharing on the GPUPool to what its device plugin does.",
    )
    SCALE_UP_NOT_SUPPORTED = (
        "ScaleUpNotSupported",
        "scheduling.scaleUpFirst is set, but DRA serves the pool's GPUs, and no pod can ask for such nodes yet.",
        "Remove scheduling.scaleUpFirst, or use a pool whose GPUs a device plugin offers.",
    )
    SHARE_TOO_LARGE = (
        "ShareTooLarge",
        "scheduling.share is more than one part of a GPU, and the pool's device plugin gives a pod no more than one. "
        "With sharing mode DRA: it is more than any engine of the namespace leaves.",
        "Lower scheduling.share, divide the pool's GPUs into fewer parts, or lower the engine's gpuMemoryUtilization.",
    )
    NO_ENGINE_TO_SHARE_WITH = (
        "NoEngineToShareWith",
        "With sharing mode DRA a share is a part of a replica's GPU, but the namespace has no engine in the pool.",
        "Run the job in the namespace of an engine of the pool, or use scheduling.policy Queue or Preempt.",
    )
    DRA_NOT_SERVED = (
        "DRANotServed",
        "The pool's sharing.mode is DRA, but the cluster does not serve resource.k8s.io/v1.",
        "Use Kubernetes 1.34 or later, and restart the operator, which asks when it starts. Or use another mode.",
    )
    ENGINE_NOT_FOUND = (
        "EngineNotFound",
        "publish.engine names no InferenceEngine in this namespace.",
        "Create it, or correct the name.",
    )
    ENGINE_TAKES_NO_ADAPTERS = "EngineTakesNoAdapters", "The engine has no spec.lora.", "Set spec.lora on it."
    RANK_TOO_LARGE = (
        "RankTooLarge",
        "The adapter's rank is above the engine's lora.maxRank.",
        "Lower lora.rank, or raise the engine's lora.maxRank.",
    )
    BASE_MODEL_DIFFERS = (
        "BaseModelDiffers",
        "The adapter belongs to another base model.",
        "Train on the engine's model, or publish to another engine.",
    )
    ADAPTER_SOURCE_NOT_MOUNTED = (
        "AdapterSourceNotMounted",
        "The engine does not mount the volume claim with the adapter, or has no lora.credentials for its address.",
        "Add the volume claim to the engine's lora.volumeClaims, write to one that it mounts, or set lora.credentials.",
    )
    VOLUME_CLAIM_NOT_FOUND = (
        "VolumeClaimNotFound",
        "A PersistentVolumeClaim that the spec names does not exist, or is being deleted.",
        "Create it in this namespace, or correct the name.",
    )
    VOLUME_CLAIM_NOT_SHAREABLE = (
        "VolumeClaimNotShareable",
        "Two nodes would need a ReadWriteOnce volume claim at once.",
        "Use a ReadWriteMany volume claim.",
    )
    DATASET_NOT_FOUND = "DatasetNotFound", "There is no file at dataset.uri.", "Correct dataset.uri."
    DATASET_INVALID = (
        "DatasetInvalid",
        "Some rows cannot be trained on. The message names the lines.",
        "Correct the rows, or set dataset.onBadRow: Skip.",
    )
    DATASET_EMPTY = "DatasetEmpty", "The dataset has no row to learn from.", "Add rows."
    MODEL_NOT_FOUND = "ModelNotFound", "There is no folder at model.uri.", "Correct model.uri."
    MODEL_INVALID = (
        "ModelInvalid",
        "The folder is not a model that Sluice can train.",
        "It needs config.json, a tokenizer with a chat template and safetensors weights.",
    )
    OUTPUT_NOT_WRITABLE = (
        "OutputNotWritable",
        "The folder at output.uri cannot be written: its volume or its object store has none such, or is full.",
        "Give uid 65532 write access, or the Secret's keys the right to write and delete; make room, or enlarge the "
        "volume. A trained job then continues by itself.",
    )
    RESUME_REFUSED = (
        "ResumeRefused",
        "The job cannot continue from the folder at spec.resumeFrom. The message says what is missing or differs.",
        "Create the job again with what the message says, or without resumeFrom.",
    )
    OUTPUT_UNREACHABLE = (
        "OutputUnreachable",
        "The object store of output.uri can't be reached, or does not answer.",
        "Wait until it is back, or mend what the message names. It is tried again, and no attempt is counted.",
    )
    ACCESS_REFUSED = (
        "AccessRefused",
        "The Secret that opens an address is missing, lacks a key or has a wrong one, or may not do what is needed.",
        "Mend the Secret, or give it the right. It is tried again, and no attempt is counted.",
    )
    SOURCE_UNUSABLE = (
        "SourceUnusable",
        "A source can't be fetched as the spec has it: its address can't be meant so, needs a Secret, or has more than "
        "there is room for.",
        "Create the job again with what the message says.",
    )
    DOWNLOAD_FAILED = (
        "DownloadFailed",
        "A source could not be fetched: the other side is away, or does not let an engine's replica read it.",
        "Mend what the message names. A job tries again up to retry.attempts times, an engine until it succeeds.",
    )
    IMAGE_NOT_PULLED = (
        "ImageNotPulled",
        "A pod's image cannot be pulled.",
        "Correct the image in the chart's values, or give the node access to it.",
    )
    POD_NOT_STARTED = "PodNotStarted", "A stage's pod did not start in time.", "See the pod's events."

    NODE_NOT_READY = (
        "NodeNotReady",
        "The node of the training pod does not answer, so it is unknown whether the pod still trains there.",
        "Bring the node back. If it is surely off, do as the message says: delete it, or taint it as out of service.",
    )

    # How an attempt ends
    REQUEUED = "Requeued", "The trainer was told to stop and saved its state.", "Nothing; it continues from there."
    POD_LOST = "PodLost", "The training pod is gone without a word.", "Nothing; a new attempt resumes."
    NODE_LOST = "NodeLost", "The node is gone.", "Nothing; a new attempt resumes elsewhere."
    POD_REFUSED = (
        "PodRefused",
        "The kubelet refused the pod, for example because a device is missing. The node is avoided for a while.",
        "See the message. If a GPU is missing, cordon the node until it is repaired.",
    )
    EVICTED = (
        "Evicted",
        "The pod was evicted, for example because its node lacks memory or disk. The node is avoided for a while.",
        "Nothing; a new attempt resumes, on another node if there is one.",
    )
    GPU_FAILED = (
        "GPUFailed",
        "CUDA reported an error of the GPU itself, such as a memory error (ECC). The node is avoided for an hour.",
        "Nothing the first time. If a node is named again, cordon it and examine its GPUs (nvidia-smi -q, dmesg).",
    )
    STALLED = "Stalled", "The trainer stopped reporting.", "See the pod's logs; a new attempt resumes."
    OUT_OF_MEMORY = (
        "OutOfMemory",
        "The trainer ran out of memory.",
        "Lower training.microBatchSize or maxSequenceLength, or raise resources.memory.",
    )
    TRAINER_FAILED = "TrainerFailed", "The trainer failed; the message has its last words.", "See the pod's logs."
    LOSS_NOT_FINITE = "LossNotFinite", "The loss became NaN or infinite.", "Lower training.learningRate."
    CHECKPOINT_INVALID = (
        "CheckpointInvalid",
        "A checkpoint is needed, but none is whole.",
        "Delete the job's checkpoints folder, or create the job again.",
    )
    ATTEMPTS_EXHAUSTED = (
        "AttemptsExhausted",
        "A stage has failed as often as retry.attempts allows. The message has the last failure.",
        "Mend that, and create the job again. status.attempts has the failures before it.",
    )
    DEADLINE_EXCEEDED = (
        "DeadlineExceeded",
        "It has trained for activeDeadlineSeconds, or prepared or exported for stageDeadlineSeconds, and is not done.",
        "Create the job again with a longer deadline, or with less to do.",
    )
    QUEUE_DEADLINE_EXCEEDED = (
        "QueueDeadlineExceeded",
        "The job has waited scheduling.queueDeadlineSeconds for its first GPUs.",
        "Raise the deadline or scheduling.priority, or set scheduling.policy: Preempt.",
    )

    # Engines
    ALL_SERVING = "AllServing", "Every replica serves.", "Nothing."
    SOME_SERVING = "SomeServing", "Some replicas serve, but fewer than spec.replicas.", "See status.slots."
    NONE_SERVING = "NoneServing", "No replica serves.", "See status.slots and the pods' events."
    REPLICA_FAILS = (
        "ReplicaFails",
        "vLLM has ended in a replica, which keeps its GPU and starts again. The message has vLLM's last error.",
        "Mend what it names, or delete the engine; kubectl logs <pod> -c vllm --previous has all that vLLM said.",
    )
    SCALED_TO_ZERO = "ScaledToZero", "spec.replicas is 0.", "Raise spec.replicas."
    LENDING = "Lending", "Replicas are lent to jobs.", "Nothing; they come back when the jobs end."
    NOTHING_LENT = "NothingLent", "No replica is lent.", "Nothing."
    ROLLOUT_WAITS_FOR_RETURN = (
        "RolloutWaitsForReturn",
        "A changed spec waits until a replica may restart.",
        "Wait until lent replicas are back, or until the jobs that train beside a replica end; or lower minReplicas.",
    )

    # Adapters
    LOADING = "Loading", "Replicas are loading the adapter.", "Nothing."
    LOADED = "Loaded", "Every ready replica answers with the adapter.", "Use its name as the `model`."
    NO_READY_REPLICA = "NoReadyReplica", "The engine has no ready replica.", "See the engine's status."
    ADAPTER_NOT_FOUND = "AdapterNotFound", "There is no adapter at source.uri.", "Correct source.uri."
    ADAPTER_INVALID = "AdapterInvalid", "vLLM cannot load the folder as an adapter.", "See the message."
    DIGEST_DIFFERS = (
        "DigestDiffers",
        "The bytes are not those of source.digest.",
        "Correct the digest, or restore the files.",
    )
    TOO_MANY_ADAPTERS = (
        "TooManyAdapters",
        "The engine has as many adapters as lora.maxAdapters.",
        "Delete an Adapter, or raise lora.maxAdapters.",
    )
    LOAD_FAILED = "LoadFailed", "vLLM refused the adapter; the message has its words.", "See the message."
    CANARY_FAILED = "CanaryFailed", "The loaded adapter did not answer a test request.", "See the replica's logs."
    ADAPTER_WITHOUT_EFFECT = "AdapterWithoutEffect", "vLLM answers the same without the adapter.", "See the message."

    # Pools
    POOL_READY = "PoolReady", "The pool has usable nodes.", "Nothing."
    NO_NODES = (
        "NoNodes",
        "No usable node has the pool's labels and resource.",
        "Correct nodeSelector or resourceName, or add nodes.",
    )

    # Any object
    INTERNAL_ERROR = "InternalError", "Looking at the object raised an exception; it is set aside.", "See the message."
