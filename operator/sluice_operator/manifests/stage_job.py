"""The batch/v1 Job of one attempt of one stage. A training Job is the claim on its GPUs."""

from collections.abc import Sequence

from sluice_api import pods
from sluice_api.claim import Claim
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import SharingMode
from sluice_api.meta import (
    ATTEMPT_LABEL,
    CLAIM_ANNOTATION,
    JOB_LABEL,
    SCHEDULING_GATE,
    STAGE_LABEL,
    group_service_name,
    stage_job_name,
)
from sluice_api.quantity import amount
from sluice_api.sources import claims_of
from sluice_api.stages import ExitCode, PoolFacts, Stage, StageSpec, grace_seconds
from sluice_api.tolerations import Toleration
from sluice_operator.manifests import pod
from sluice_operator.manifests.devices import of_training, with_claims
from sluice_operator.manifests.metadata import app_labels, owned_by
from sluice_operator.settings import Settings
from sluice_operator.writes import Manifest

CPU_STAGE_CPU = "250m"
_TELLS_REQUEUES: Manifest = {
    "rules": [
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": "trainer", "operator": "In", "values": [ExitCode.REQUEUE.value]},
        }
    ]
}
"""The Job would fail all the same. Its condition then says why, when the pod has gone while no operator ran."""

_STAYS = {"karpenter.sh/do-not-disrupt": "true", "cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
"""On training pods: a node is not emptied to save it. What is lost by that is more than what is saved."""


def stage_job(
    job: FineTuneJob,
    stage: Stage,
    attempt: int,
    settings: Settings,
    claim: Claim | None = None,
    tolerations: Sequence[Toleration] = (),
    *,
    seconds: int,
    pool: PoolFacts | None = None,
) -> Manifest:
    """The Job of one attempt of one stage. Its pods are never replaced: attempts are ours, one Job each.

    A training Job is a claim: its pods are born gated, and stay so until the claim is bound.

    Args:
        tolerations: of the claim's pool.
        seconds: after so many the Job controller ends it, whoever else runs.
        pool: what Prepare is told about the pool's GPUs. Other stages see the GPU itself, or need none.

    Raises:
        ValueError: Train without a claim, or another stage with one.
    """
    if (stage is Stage.TRAIN) != (claim is not None):
        raise ValueError(f"{stage} {'needs a' if stage is Stage.TRAIN else 'takes no'} claim")
    labels = {
        **app_labels("trainer", job.metadata.name),
        JOB_LABEL: job.metadata.name,
        STAGE_LABEL: stage.value,
        ATTEMPT_LABEL: str(attempt),
    }
    metadata = owned_by(job, stage_job_name(job.metadata.name, job.metadata.uid, stage, attempt), labels)
    spec = _pod_spec(job, stage, attempt, settings, pool if stage is Stage.PREPARE else None)
    if claim:
        metadata["annotations"] = {CLAIM_ANNOTATION: claim.to_json()}
        spec = _claiming(spec, job, claim, settings, tolerations)
    pods_needed = len(claim.nodes) if claim else 1
    alone, annotations = pod.WITHOUT_MESH
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "parallelism": pods_needed,
            "completions": pods_needed,
            "backoffLimit": 0,
            "activeDeadlineSeconds": seconds,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": _TELLS_REQUEUES,
            **(_GROUP if pods_needed > 1 else {}),
            "template": {
                "metadata": {"labels": labels | alone, "annotations": annotations | (_STAYS if claim else {})},
                "spec": _together(spec, job, metadata["name"]) if pods_needed > 1 else spec,
            },
        },
    }


def group_service(job: FineTuneJob) -> Manifest:
    """What gives the pods of a group their host names. They find each other before they are ready."""
    selector = {JOB_LABEL: job.metadata.name, STAGE_LABEL: Stage.TRAIN.value}
    name = group_service_name(job.metadata.name, job.metadata.uid)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owned_by(job, name, {**app_labels("trainer", job.metadata.name), JOB_LABEL: job.metadata.name}),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": selector,
            "ports": [{"name": "leader", "port": pods.LEADER_PORT, "protocol": "TCP"}],
        },
    }


_GROUP: Manifest = {
    "completionMode": "Indexed",
    "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
}
"""Training is over when the pod that saves its state says so; the others end with it. One that fails ends them all."""


def _together(spec: Manifest, job: FineTuneJob, name: str) -> Manifest:
    """A pod of a group: it knows where the one with index 0 is, by the name that the Job controller gives to that."""
    service = group_service_name(job.metadata.name, job.metadata.uid)
    leader = {pods.LEADER_ENV: f"{name}-0.{service}"}
    (trainer,) = spec["containers"]
    ports = [*trainer["ports"], {"name": "leader", "containerPort": pods.LEADER_PORT, "protocol": "TCP"}]
    return {
        **spec,
        "subdomain": service,
        "containers": [{**trainer, "env": [*trainer["env"], *pod.environment(leader)], "ports": ports}],
    }


def _claiming(
    spec: Manifest, job: FineTuneJob, claim: Claim, settings: Settings, tolerations: Sequence[Toleration]
) -> Manifest:
    """The pod with its GPUs. It waits at its gate; the node selector comes when the claim is bound."""
    (trainer,) = spec["containers"]
    devices = of_training(job, claim) if claim.own_devices is not None else []
    if devices:
        gpus = with_claims(trainer["resources"], devices)
    else:
        gpus = pod.with_gpus(trainer["resources"], claim.resource, claim.gpus)
    if claim.share and claim.share.mode is SharingMode.HAMI:
        gpus = pod.with_gpus(gpus, pods.HAMI_MEMORY, claim.share.percent)
    elif claim.share:
        limit = pod.environment({pods.SHARE_ENV: str(claim.share.percent)})
        trainer = {**trainer, "env": [*trainer["env"], *limit]}
    return {
        **spec,
        "schedulingGates": [{"name": SCHEDULING_GATE}],
        "priorityClassName": settings.training_priority_class,
        "tolerations": pod.tolerated(claim.resource, tolerations),
        **({"resourceClaims": devices} if devices else {}),
        "containers": [{**trainer, "resources": gpus}],
    }


def _pod_spec(job: FineTuneJob, stage: Stage, attempt: int, settings: Settings, pool: PoolFacts | None) -> Manifest:
    output = claims_of(job.spec.output.uri)
    claims = job.spec.volumes
    secrets = job.spec.secrets(reads_dataset=stage is Stage.PREPARE)
    config_maps = job.spec.config_maps if stage is Stage.PREPARE else ()
    work = StageSpec(
        namespace=job.metadata.namespace,
        name=job.metadata.name,
        uid=job.metadata.uid,
        stage=stage,
        attempt=attempt,
        spec=job.spec,
        pool=pool,
    )
    resources = stage_resources(job, stage)
    processes = job.spec.resources.gpus if stage is Stage.TRAIN else 1
    trainer: Manifest = {
        "name": "trainer",
        "image": settings.trainer_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": pod.python("-m", "sluice_trainer", stage.lower()),
        "env": pod.environment(
            pods.variables(pods.STAGE_ENV, work.to_json()),
            {pods.REPORT_URL_ENV: settings.report_url},
            pod.disk_limit(job.spec.resources.ephemeral_storage),
            {pods.THREADS_ENV: str(pods.threads(resources["requests"]["cpu"], processes))},
            pod.BASE_ENVIRONMENT,
        ),
        "ports": [{"name": "metrics", "containerPort": pods.METRICS_PORT, "protocol": "TCP"}],
        "resources": resources,
        "securityContext": pod.CONTAINER_SECURITY,
        "terminationMessagePath": pods.TERMINATION_FILE,
        "terminationMessagePolicy": "File",
        "volumeMounts": [
            pod.SCRATCH_MOUNT,
            pod.SHM_MOUNT,
            pod.TOKEN_MOUNT,
            *pod.claim_mounts(claims, writable=output),
            *pod.secret_mounts(secrets),
            *pod.config_map_mounts(config_maps),
        ],
    }
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace_seconds(job.spec),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod.POD_SECURITY,
        **pod.pulled_with(job.spec.image_pull_secrets, settings),
        "containers": [trainer],
        "volumes": [
            pod.own_disk("scratch", job.spec.resources.ephemeral_storage),
            pod.shared_memory(trainer["resources"]["limits"]["memory"]),
            pod.token_volume(settings),
            *pod.claim_volumes(claims),
            *pod.secret_volumes(secrets),
            *pod.config_map_volumes(config_maps),
        ],
    }


def stage_resources(job: FineTuneJob, stage: Stage) -> Manifest:
    """What the stage's pod requests; the GPU of a training pod comes with its claim.

    Export loads the model as training does.
    """
    wanted = job.spec.resources
    if stage is Stage.TRAIN:
        return pod.main_resources(wanted.cpu, wanted.memory, wanted.ephemeral_storage)
    memory = wanted.memory
    if stage is Stage.PREPARE:
        memory = min(wanted.memory, pods.PREPARE_MEMORY, key=lambda quantity: amount("memory", quantity))
    return pod.main_resources(CPU_STAGE_CPU, memory, wanted.ephemeral_storage)
