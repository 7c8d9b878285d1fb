"""What every pod that Sluice makes has in common: Pod Security `restricted`, its token, its claims, its own disk."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from sluice_api import pods
from sluice_api.gpupool import GPUPoolSpec, SharingMode
from sluice_api.inferenceengine import InferenceEngineSpec
from sluice_api.meta import taints_of_gpus
from sluice_api.quantity import amount
from sluice_api.sources import CONFIG_MAPS, CREDENTIALS, KEYS_OF, MISSPELT, VOLUMES
from sluice_api.tolerations import Toleration
from sluice_operator.manifests import trust
from sluice_operator.settings import Settings
from sluice_operator.writes import Manifest

USER = 65532
"""`nonroot` of the distroless images."""
TOKEN_SECONDS = 3600

_GROUP_READS = 0o440
"""The group is the pod's fsGroup."""

SCRATCH_MOUNT: Manifest = {"name": "scratch", "mountPath": pods.SCRATCH}
SHM_MOUNT: Manifest = {"name": "shm", "mountPath": "/dev/shm"}  # noqa: S108
"""Processes of one model pass tensors through it; a container runtime gives 64 MiB, which is too little."""
TOKEN_MOUNT: Manifest = {"name": "token", "mountPath": str(PurePosixPath(pods.TOKEN_FILE).parent), "readOnly": True}
_TOKEN: Manifest = {
    "serviceAccountToken": {
        "audience": pods.TOKEN_AUDIENCE,
        "expirationSeconds": TOKEN_SECONDS,
        "path": PurePosixPath(pods.TOKEN_FILE).name,
    }
}
_TRUST: Manifest = {
    "configMap": {
        "name": trust.NAME,
        "items": [{"key": trust.ENTRY, "path": PurePosixPath(pods.TRUST_FILE).name}],
        "optional": True,
    }
}
"""Optional: a certificate that all machines trust needs none."""

WITHOUT_MESH = {"sidecar.istio.io/inject": "false"}, {"linkerd.io/inject": "disabled"}
"""Labels and annotations by which service meshes put no sidecar into a pod. It would outlive a pod that is to end."""

CONTAINER_SECURITY: Manifest = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
POD_SECURITY: Manifest = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""OnRootMismatch: a volume of models is not walked through, file by file, at each start."""

BASE_ENVIRONMENT = {
    "HOME": pods.SCRATCH,
    "TMPDIR": pods.SCRATCH,
    "HF_HOME": f"{pods.SCRATCH}/huggingface",
    "USER": "sluice",
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""The user has no entry in /etc/passwd, so Python asks USER for its name. OpenMP threads that spin while
they wait collapse as soon as anything else uses a core (reference/cpu-recipe.md)."""


def token_volume(settings: Settings) -> Manifest:
    """The volume of TOKEN_MOUNT: by what the operator knows the pod, and the pod the operator."""
    sources = [_TOKEN, _TRUST] if settings.by_tls else [_TOKEN]
    return {"name": "token", "projected": {"sources": sources}}


def own_disk(name: str, size: str) -> Manifest:
    """A volume on the node's disk that is empty at the pod's start; a pod that fills it further is evicted."""
    return {"name": name, "emptyDir": {"sizeLimit": size}}


def shared_memory(memory: str) -> Manifest:
    """The volume of SHM_MOUNT; what is in it counts as memory of the container that has written it."""
    return {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": memory}}


def main_resources(cpu: str, memory: str, disk: str) -> Manifest:
    """Resources of a pod's main container. No CPU limit: throttling slows it without helping anyone."""
    return {
        "requests": {"cpu": cpu, "memory": memory, "ephemeral-storage": pods.DISK_REQUEST},
        "limits": {"memory": memory, "ephemeral-storage": disk},
    }


def pulled_with(own: Sequence[str], settings: Settings) -> Manifest:
    """spec.imagePullSecrets of a pod, as far as there are any: those of its spec, or else the chart's."""
    names = own or settings.image_pull_secrets
    return {"imagePullSecrets": [{"name": name} for name in names]} if names else {}


def python(*arguments: str) -> list[str]:
    """A container's command. SIGTERM is blocked until the program listens to it: the kernel drops one that its first
    process has no handler for, as Python has none while it starts, but keeps one that is blocked.
    """
    return ["env", "--block-signal=TERM", "python3", *arguments]


def disk_limit(disk: str) -> dict[str, str]:
    """Tells a container's program how much of the node's disk it may fill, so that it need not be evicted."""
    return {pods.DISK_ENV: str(amount("ephemeral-storage", disk))}


def environment(*parts: Mapping[str, str]) -> list[Manifest]:
    """Environment variables of a container, each with exactly its value: the kubelet takes $(NAME) for another
    variable's value and $$ for $.
    """
    return [{"name": name, "value": value.replace("$", "$$")} for part in parts for name, value in part.items()]


def claim_volumes(claims: Iterable[str]) -> list[Manifest]:
    """A volume for each PersistentVolumeClaim. Numbered, because a claim's name may be too long for a volume."""
    return [
        {"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}}
        for number, claim in enumerate(claims)
    ]


def claim_mounts(claims: Iterable[str], writable: Sequence[str] = ()) -> list[Manifest]:
    """Where a container sees the claims of claim_volumes: each at /volumes/<claim>."""
    return [
        {"name": f"claim-{number}", "mountPath": str(VOLUMES / claim), "readOnly": claim not in writable}
        for number, claim in enumerate(claims)
    ]


def secret_volumes(secrets: Iterable[str]) -> list[Manifest]:
    """A volume for each Secret with credentials, with none of its other keys. One that is missing is said by who needs
    it, in its own words; the kubelet would only hold the pod back.
    """
    items = [{"key": key, "path": key} for key in (*(key for keys in KEYS_OF.values() for key in keys), *MISSPELT)]
    what = {"optional": True, "defaultMode": _GROUP_READS, "items": items}
    return [
        {"name": f"secret-{number}", "secret": {"secretName": secret, **what}} for number, secret in enumerate(secrets)
    ]


def secret_mounts(secrets: Iterable[str]) -> list[Manifest]:
    """Where a container sees the Secrets of secret_volumes: each at /credentials/<secret>."""
    return [
        {"name": f"secret-{number}", "mountPath": str(CREDENTIALS / secret), "readOnly": True}
        for number, secret in enumerate(secrets)
    ]


def config_map_volumes(names: Iterable[str]) -> list[Manifest]:
    """A volume for each ConfigMap that is read; of one that is missing its reader says so."""
    return [
        {"name": f"config-map-{number}", "configMap": {"name": name, "optional": True}}
        for number, name in enumerate(names)
    ]


def config_map_mounts(names: Iterable[str]) -> list[Manifest]:
    """Where a container sees the ConfigMaps of config_map_volumes: each at /configmaps/<name>."""
    return [
        {"name": f"config-map-{number}", "mountPath": str(CONFIG_MAPS / name), "readOnly": True}
        for number, name in enumerate(names)
    ]


def tolerated(gpus: str, more: Sequence[Toleration]) -> list[Manifest]:
    """GPU nodes are commonly tainted with the name of their GPUs, to keep everything else away.

    Args:
        more: what else the pool's nodes are tainted with.
    """
    own = [{"key": key, "operator": "Exists"} for key in taints_of_gpus(gpus)]
    return [*own, *({**one.model_dump(exclude_defaults=True), "operator": one.operator} for one in more)]


def with_gpus(resources: Manifest, resource: str, amount: int) -> Manifest:
    """A container's resources and an extended one: its limit is its request."""
    return {kind: {**amounts, resource: str(amount)} for kind, amounts in resources.items()}


def engine_gpus(resources: Manifest, pool: GPUPoolSpec, engine: InferenceEngineSpec) -> Manifest:
    """A container's resources and the GPUs of a replica; HAMi is told how much of their memory vLLM takes.

    GPUs that DRA serves are no resources: see `devices`.
    """
    if pool.by_dra:
        return resources
    gpus = with_gpus(resources, pool.resource_name, engine.resources.gpus)
    if pool.sharing.mode is not SharingMode.HAMI:
        return gpus
    percent = round(100 * float(engine.serving.gpu_memory_utilization))
    return with_gpus(gpus, pods.HAMI_MEMORY, percent)
