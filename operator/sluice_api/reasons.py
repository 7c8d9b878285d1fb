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
        "As many jobs of the pool, or of the namespace in it, prepare their data as the pool allows at once.",
        "Wait until one of them has, or raise spec.prepare in the GPUPool.",
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
        "preemption.policy is Sleep, but the pool gives a GPU to one pod alone, so a sleeping replica would keep it.",
        "Set preemption.policy: ScaleDown, or use a GPUPool of sharing.mode: DRA.",
    )
    ENGINE_WAKES = (
        "EngineWakes",
        "Only replicas that serve can go to sleep, and none of the engine that lends does so with its present spec.",
        "Wait until they serve; see the engine's status.slots.",
    )
    ENGINE_LENDS_ELSEWHERE = (
        "EngineLendsElsewhere",
        "The engines that lend do not lend to this namespace.",
        "Set preemption.lendTo: Anywhere on an engine, or run the job in its namespace.",
    )
    ENGINE_OUTRANKS = (
        "EngineOutranks",
        "The engines that lend have a higher priority than the job.",
        "Raise the job's scheduling.priority, or lower the engine's preemption.priority.",
    )
    ENGINE_LENDS_LATER = (
        "EngineLendsLater",
        "The engines that lend do so in other hours.",
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
        "A PodDisruptionBudget lets none of the replicas of the engine that lends go now.",
        "Wait until it does, or change the budget.",
    )
    ENGINE_MUST_SLEEP = (
        "EngineMustSleep",
        "GPUs that are served by DRA are lent by replicas that sleep: one that stopped could lose them to another pod.",
        "Set preemption.policy: Sleep on the engine.",
    )
    ENGINE_HAS_GUESTS = (
        "EngineHasGuests",
        "Jobs of policy Shared train beside each replica of the engine that lends.",
        "Wait until one ends, or raise the engine's replicas.",
    )
    GROUP_BORROWS_NONE = (
        "GroupBorrowsNone",
        "A job of several pods borrows no GPUs that are served by DRA.",
        "Wait for free GPUs, or set resources.nodes: 1.",
    )
    ENGINE_IN_DEMAND = (
        "EngineInDemand",
        "The engines that lend need their replicas themselves.",
        "Wait until there is less to answer, or see preemption.reclaim and reclaimAbove.",
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
        "No replica of the job's namespace has so much of its GPU's memory left for a job beside it now.",
        "Wait until a replica starts, or a job beside one ends; or lower scheduling.share.",
    )
    NOT_BEFORE = (
        "NotBefore",
        "scheduling.notBefore is still to come; the data is prepared.",
        "Wait, or set an earlier scheduling.notBefore.",
    )
    CLAIMED = "Claimed", "GPUs are set aside; the pod is being proven runnable.", "Nothing."
    DRAINING = (
        "Draining",
        "Borrowed replicas finish their requests.",
        "Nothing; at most the engine's drainTimeoutSeconds.",
    )
    FALLING_ASLEEP = (
        "FallingAsleep",
        "Borrowed replicas free the memory of their GPUs.",
        "Nothing; this takes seconds, and the claim is given up when it takes too long.",
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
        "The object is being deleted; what still runs for it is ended, and counts until it is gone.",
        "Remove the finalizers that keep it, once their controllers are done.",
    )
    SUSPENDED = (
        "Suspended",
        "spec.suspend is true; the state is saved and the GPUs are given back.",
        "Set spec.suspend: false.",
    )
    MANAGED_ELSEWHERE = "ManagedElsewhere", "spec.managedBy names another controller.", "Look at that controller."

    # Training that gives way
    PREEMPTED = (
        "Preempted",
        "A job of higher priority has the GPUs; the state is saved.",
        "Nothing; training goes on from the checkpoint when there are GPUs again.",
    )
    RECLAIMED = (
        "Reclaimed",
        "The engine that lent the GPUs needs them back; the state is saved.",
        "Nothing; training goes on from the checkpoint when there are GPUs again.",
    )

    # Why a claim does not get further
    QUOTA_EXCEEDED = (
        "QuotaExceeded",
        "A ResourceQuota of the namespace refuses an object that is needed; the message has the API server's words.",
        "Raise the quota, delete what it counts, or lower resources.*; it is tried again after a pause that doubles.",
    )
    REFUSED_BY_ADMISSION = (
        "RefusedByAdmission",
        "The API server refuses an object that is needed: by a policy, a webhook, a LimitRange, Pod Security or its "
        "schema. The message has its words.",
        "Change what refuses it, or the spec; it is tried again, after an hour at most (an engine: after a minute).",
    )
    NAME_TAKEN = (
        "NameTaken",
        "An object that Sluice did not make for this one has the name that is needed. Nothing of it is changed.",
        "Delete it, or use another name; for an Adapter, set publish.replace: true on the job.",
    )
    UNSCHEDULABLE = (
        "Unschedulable",
        "The pod would not fit the node for another reason than GPUs.",
        "Lower resources.memory or resources.cpu, or free the node.",
    )
    SUSPENDED_BY_OTHER = (
        "SuspendedByOther",
        "Another queueing system suspended a Job of Sluice's.",
        "Exempt Sluice's Jobs from that system, or use spec.managedBy.",
    )
    NODE_AVOIDED = (
        "NodeAvoided",
        "The nodes that are left failed this job a moment ago, and are left out for a while.",
        "Wait until the moment that the message names, or mend the node.",
    )
    NOT_BOUND = (
        "NotBound",
        "The training pod was not bound to its node in time; the claim was given up.",
        "Nothing; another claim is made, elsewhere if possible.",
    )

    ENGINE_DOES_NOT_SLEEP = (
        "EngineDoesNotSleep",
        "A borrowed replica did not free the memory of its GPUs in time; the claim was given up and the replica wakes.",
        "See the message; set preemption.policy: ScaleDown on the engine if it happens again.",
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
        "No node of the pool has so much, even when empty.",
        "Lower resources.gpus, resources.memory or resources.cpu, or add a larger node.",
    )
    EXCEEDS_POOL = (
        "ExceedsPool",
        "The pool's nodes have no room for so many pods at once, even when empty.",
        "Lower resources.nodes or resources.gpus, or add nodes.",
    )
    POOL_DOES_NOT_SHARE = (
        "PoolDoesNotShare",
        "scheduling.policy is Shared, but the pool's nodes give each GPU to one pod.",
        "Use Queue or Preempt, another pool, or set spec.sharing on the GPUPool as its device plugin is set up.",
    )
    SCALE_UP_NOT_SUPPORTED = (
        "ScaleUpNotSupported",
        "scheduling.scaleUpFirst is set, but the pool's GPUs are served by DRA, by which no pod asks for nodes yet.",
        "Remove scheduling.scaleUpFirst, or use a pool whose GPUs a device plugin offers.",
    )
    SHARE_TOO_LARGE = (
        "ShareTooLarge",
        "scheduling.share is more than one part of a GPU, which is all that the pool's device plugin gives to a pod; "
        "with sharing mode DRA, more than any engine of the namespace leaves.",
        "Lower scheduling.share, divide the pool's GPUs into fewer parts, or lower the engine's gpuMemoryUtilization.",
    )
    NO_ENGINE_BESIDE = (
        "NoEngineBeside",
        "With sharing mode DRA a share is a part of a replica's GPU, and the namespace has no engine in the pool.",
        "Run the job in the namespace of an engine of the pool, or use scheduling.policy Queue or Preempt.",
    )
    DRA_NOT_SERVED = (
        "DRANotServed",
        "The pool's sharing.mode is DRA, but the cluster does not serve resource.k8s.io/v1.",
        "Use Kubernetes 1.34 or later and restart the operator, which asks when it starts; or another sharing.mode.",
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
        "The engine does not mount the claim with the adapter.",
        "Add the claim to the engine's lora.claims, or write to one that it mounts.",
    )
    CLAIM_NOT_FOUND = (
        "ClaimNotFound",
        "A PersistentVolumeClaim that the spec names does not exist.",
        "Create it in this namespace, or correct the name.",
    )
    CLAIM_NOT_SHAREABLE = (
        "ClaimNotShareable",
        "Two nodes would need a ReadWriteOnce claim at once.",
        "Use a ReadWriteMany claim.",
    )
    DATASET_NOT_FOUND = "DatasetNotFound", "There is no file at dataset.uri.", "Correct dataset.uri."
    DATASET_INVALID = (
        "DatasetInvalid",
        "Rows cannot be trained on; the message names the lines.",
        "Mend the rows, or set dataset.onBadRow: Skip.",
    )
    DATASET_EMPTY = "DatasetEmpty", "The dataset has no row to learn from.", "Add rows."
    MODEL_NOT_FOUND = "ModelNotFound", "There is no folder at model.uri.", "Correct model.uri."
    MODEL_INVALID = (
        "ModelInvalid",
        "The folder is no model that Sluice can train.",
        "It needs config.json, a tokenizer with a chat template and safetensors weights.",
    )
    OUTPUT_NOT_WRITABLE = (
        "OutputNotWritable",
        "The folder at output.uri cannot be written, or its volume is full.",
        "Give uid 65532 write access, or make room, or the volume larger: who has trained then goes on by itself.",
    )
    RESUME_REFUSED = (
        "ResumeRefused",
        "The job cannot go on from the folder at spec.resumeFrom; the message says what is missing or differs.",
        "Create the job anew with what the message says, or without resumeFrom.",
    )
    DOWNLOAD_FAILED = "DownloadFailed", "A source could not be fetched.", "See the message for host and status."
    IMAGE_NOT_PULLED = (
        "ImageNotPulled",
        "A pod's image cannot be pulled.",
        "Correct the image in the chart's values, or give the node access to it.",
    )
    POD_NOT_STARTED = "PodNotStarted", "A stage's pod did not start in time.", "See the pod's events."

    NODE_NOT_READY = (
        "NodeNotReady",
        "The node of the training pod does not answer, so nobody knows whether it still trains there.",
        "Bring the node back; or, once it is surely off, say so as the message tells: delete it, or taint it as out of "
        "service.",
    )

    # How an attempt ends
    REQUEUED = "Requeued", "The trainer was told to stop and saved its state.", "Nothing; it goes on from there."
    POD_LOST = "PodLost", "The training pod is gone without a word.", "Nothing; a new attempt resumes."
    NODE_LOST = "NodeLost", "The node is gone.", "Nothing; a new attempt resumes elsewhere."
    POD_REFUSED = (
        "PodRefused",
        "The kubelet did not let the pod start, for want of a device, say; the node is avoided for a while.",
        "See the message; if a GPU is missing, cordon the node until it is mended.",
    )
    EVICTED = (
        "Evicted",
        "The pod was taken from its node, which lacks memory or disk, say; the node is avoided for a while.",
        "Nothing; a new attempt resumes, elsewhere if there is an elsewhere.",
    )
    GPU_FAILED = (
        "GPUFailed",
        "CUDA reported an error of the GPU itself, such as one of its memory (ECC); the node is avoided for an hour.",
        "Nothing the first time; if a node is named again, cordon it and look at its GPUs (nvidia-smi -q, dmesg).",
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
        "No checkpoint is whole where one must be.",
        "Delete the job's checkpoints folder, or create the job anew.",
    )
    ATTEMPTS_EXHAUSTED = "AttemptsExhausted", "retry.attempts attempts have failed.", "See status.attempts."
    DEADLINE_EXCEEDED = (
        "DeadlineExceeded",
        "It has trained for activeDeadlineSeconds, or prepared or exported for stageDeadlineSeconds, and is not done.",
        "Create the job anew with more, or have it do less.",
    )
    QUEUE_DEADLINE_EXCEEDED = (
        "QueueDeadlineExceeded",
        "It has waited scheduling.queueDeadlineSeconds for its first GPUs.",
        "Raise it, raise scheduling.priority, or set scheduling.policy: Preempt.",
    )

    # Engines
    ALL_SERVING = "AllServing", "Every replica serves.", "Nothing."
    SOME_SERVING = "SomeServing", "Some replicas serve, fewer than spec.replicas.", "See status.slots."
    NONE_SERVING = "NoneServing", "No replica serves.", "See status.slots and the pods' events."
    SCALED_TO_ZERO = "ScaledToZero", "spec.replicas is 0.", "Raise spec.replicas."
    LENDING = "Lending", "Replicas are lent to jobs.", "Nothing; they come back when the jobs end."
    NOTHING_LENT = "NothingLent", "No replica is lent.", "Nothing."
    ROLLOUT_WAITS_FOR_RETURN = (
        "RolloutWaitsForReturn",
        "A changed spec waits until a replica may restart.",
        "Wait until lent replicas are back, or lower minReplicas; or until jobs end that train beside a replica.",
    )

    # Adapters
    LOADING = "Loading", "Replicas are loading the adapter.", "Nothing."
    LOADED = "Loaded", "Every ready replica answers with the adapter.", "Use its name as the `model`."
    NO_READY_REPLICA = "NoReadyReplica", "The engine has no ready replica.", "See the engine's status."
    ADAPTER_NOT_FOUND = "AdapterNotFound", "There is no adapter at source.uri.", "Correct source.uri."
    ADAPTER_INVALID = "AdapterInvalid", "The folder is no adapter that vLLM can load.", "See the message."
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
    ADAPTER_WITHOUT_EFFECT = "AdapterWithoutEffect", "With the adapter vLLM answers as without.", "See the message."

    # Pools
    POOL_READY = "PoolReady", "The pool has usable nodes.", "Nothing."
    NO_NODES = (
        "NoNodes",
        "No usable node has the pool's labels and resource.",
        "Correct nodeSelector or resourceName, or add nodes.",
    )

    # Any object
    INTERNAL_ERROR = "InternalError", "Looking at the object raised an exception; it is set aside.", "See the message."
