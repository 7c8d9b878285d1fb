"""Does a pod fit a node in everything but the number of GPUs: cpu, memory, disk, pods, volumes, GPU memory?"""

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

from sluice_api.finetunejob import FineTuneJob, JobResources
from sluice_api.meta import SCALE_UP_LABEL, scale_up_name
from sluice_api.pods import DISK_REQUEST
from sluice_api.quantity import amount, readable
from sluice_api.sources import volume_path
from sluice_operator.observe.memo import once_a_job, once_a_world
from sluice_operator.observe.views import Key, NodeRequirement, NodeView, PodView, Resources, VolumeClaimView
from sluice_operator.observe.world import World, job_key

COUNTED = ("cpu", "memory", "ephemeral-storage")
"""Resources that kube-scheduler counts for each pod, by the pod's requests. A LimitRange may have raised those."""


DISK = amount("ephemeral-storage", DISK_REQUEST)


GPU_MEMORY = "gpuMemory"


GPU_MEMORY_LABEL = "nvidia.com/gpu.memory"
"""Node label: the memory of each of the node's GPUs, in MiB."""


@lru_cache(maxsize=4096)  # it is asked for each node that is looked at
def need_of(resources: JobResources) -> Resources:
    """What a training pod asks for. Of its GPUs only the least memory of each is included, not their number."""
    gpus = {GPU_MEMORY: amount("memory", resources.gpu_memory)} if resources.gpu_memory else {}
    cpu, memory = amount("cpu", resources.cpu), amount("memory", resources.memory)
    return MappingProxyType({"cpu": cpu, "memory": memory, "ephemeral-storage": DISK, **gpus})


@once_a_job
def volume_claims_of(_world: World, job: FineTuneJob) -> tuple[str, ...]:
    """PersistentVolumeClaims that the job's pods mount."""
    return job.spec.volumes


def missing_volume_claim(world: World, namespace: str, uri: str) -> str:
    """What to do when an address names a PersistentVolumeClaim that no pod can begin to use; empty if all can be."""
    path = volume_path(uri)
    if path is None:
        return ""
    claim = world.volume_claims.get(Key("PersistentVolumeClaim", namespace, path.claim))
    if claim is not None and claim.terminating:
        return (
            f"PersistentVolumeClaim {path.claim} of namespace {namespace} is being deleted, and no pod may begin to "
            "use it. Create it again, with what was in it, once it is gone."
        )
    if claim is not None:
        return ""
    return (
        f"PersistentVolumeClaim {path.claim} does not exist in namespace {namespace}. Create it, or correct the pvc:// "
        "address."
    )


def holding(world: World, node: str) -> list[PodView]:
    """Pods that hold room on a node: bound and not ended, even if terminating. Pods that make room do not count."""
    return [pod for pod in world.pods_on.get(node, {}).values() if not pod.ended and not makes_room(world, pod)]


def makes_room(world: World, pod: PodView) -> bool:
    """Whether a pod is a scale-up pod that can be deleted at once (see plan/pool/scale_up.py).

    A pod that only looks like one, or that takes time to be deleted, holds its room until it is gone. A scale-up pod
    that is being deleted at once still makes room. Otherwise a replica that starts in its place would lose the place
    for a moment.
    """
    return pod.goes_at_once and asks_for_node(world, pod)


def asks_for_node(world: World, pod: PodView) -> bool:
    """Whether a pod is a scale-up pod of a job that exists, by its label, owner and name."""
    if SCALE_UP_LABEL not in pod.labels or pod.owner is None:
        return False
    job = world.jobs.get(job_key(pod.key.namespace, pod.owner.name))
    if job is None or job.metadata.uid != pod.owner.uid:
        return False
    names = (scale_up_name(job.metadata.name, pod.owner.uid, index) for index in range(job.spec.resources.nodes))
    return pod.key.name in names


def shortage(
    world: World,
    node: NodeView,
    need: Resources,
    leaving: Collection[Key],
    coming: Iterable[Resources] = (),
    pods: int = 1,
) -> str:
    """What a node lacks for a number of equal pods; empty if they fit.

    Args:
        need: what each of the pods asks for.
        leaving: pods that do not count: they will be gone, or are the pods that ask.
        coming: requests of other pods that will be bound to the node, but are not yet.
        pods: how many pods must fit.
    """
    if small := _too_small(node, need):
        return small
    staying = [pod.requests for pod in holding(world, node.key.name) if pod.key not in leaving]
    for resource in COUNTED:
        used = sum(requests.get(resource, 0) for requests in (*staying, *coming))
        left = node.allocatable.get(resource, 0) - used
        if pods * need.get(resource, 0) > left:
            return (
                f"{resource}: needs {readable(resource, pods * need[resource])}, "
                f"{readable(resource, max(left, 0))} of {readable(resource, node.allocatable.get(resource, 0))} is left"
            )
    if "pods" in node.allocatable and len(staying) + pods > node.allocatable["pods"]:
        return f"pods: the node takes {node.allocatable['pods']}"
    return ""


@once_a_world(lambda _world, node: node.key)
def capacity(world: World, node: NodeView) -> Resources:
    """The cpu, memory and disk of a node, less what its DaemonSets' pods ask for, as those never leave it."""
    largest: dict[tuple[str, str], int] = {}  # of a DaemonSet that is changed, two pods may be there for a moment
    for pod in world.pods_on.get(node.key.name, {}).values():
        for of in COUNTED if pod.daemon_set and not pod.ended else ():
            key = (pod.daemon_set, of)
            largest[key] = max(largest.get(key, 0), pod.requests.get(of, 0))
    taken = {of: sum(amount for (_, its), amount in largest.items() if its == of) for of in COUNTED}
    return {of: node.allocatable.get(of, 0) - taken[of] for of in COUNTED}


def exceeds(world: World, node: NodeView, need: Resources) -> str:
    """What a node would lack for one pod even if it had only its DaemonSets' pods; empty if the pod would fit."""
    if small := _too_small(node, need):
        return small
    has = capacity(world, node)
    for resource in COUNTED:
        if need.get(resource, 0) > has[resource]:
            have = readable(resource, max(0, has[resource]))
            less = "" if has[resource] == node.allocatable.get(resource, 0) else " beside its DaemonSets"
            return f"{resource}: needs {readable(resource, need[resource])}, the node has {have}{less}"
    return ""


def least_excess(world: World, nodes: Iterable[NodeView], need: Resources) -> str:
    """What the node that comes nearest would lack for one pod (`exceeds`); empty if it fits one of them."""
    found: list[tuple[tuple[int, ...], str, str]] = []
    for node in nodes:
        lack = exceeds(world, node, need)
        if not lack:
            return ""
        has = capacity(world, node)
        short = sum(1 for of in COUNTED if need.get(of, 0) > has[of]), *(-has[of] for of in COUNTED)
        found.append((short, node.key.name, lack))
    return min(found)[2] if found else ""


def most_pods(world: World, node: NodeView, there: int, gpus: int, need: Resources) -> int:
    """How many equal pods fit a node that has only its DaemonSets' pods.

    Args:
        there: GPUs that the node offers.
        gpus: GPUs of each pod.
        need: what else each pod asks for.
    """
    if exceeds(world, node, need):
        return 0
    has = capacity(world, node)
    rooms = [has[counted] // need[counted] for counted in COUNTED if need.get(counted)]
    return min(there // gpus, *rooms)


def like(world: World, node: NodeView) -> Hashable:
    """All that decides, beside GPUs, how much an empty node takes. It is equal for nodes that take the same."""
    return (*capacity(world, node).values(), node.labels.get(GPU_MEMORY_LABEL, ""))


def _too_small(node: NodeView, need: Resources) -> str:
    """Why a node's GPUs have too little memory; empty if they have enough, or if no memory is asked for."""
    if not need.get(GPU_MEMORY):
        return ""
    wanted = readable("memory", need[GPU_MEMORY])
    mebibytes = node.labels.get(GPU_MEMORY_LABEL, "")
    if not mebibytes.isdecimal():
        return f"{GPU_MEMORY}: needs {wanted}, the node has no label {GPU_MEMORY_LABEL} that says what it has"
    has = int(mebibytes) << 20
    return f"{GPU_MEMORY}: needs {wanted}, the node's have {readable('memory', has)}" if has < need[GPU_MEMORY] else ""


def bound_to_nodes(world: World, namespace: str, claims: Iterable[str]) -> tuple[str, ...]:
    """Those of some volume claims whose volume can be mounted on certain nodes only."""
    views = ((name, world.volume_claims.get(Key("PersistentVolumeClaim", namespace, name))) for name in claims)
    return tuple(name for name, claim in views if claim and _node_terms(world, claim))


def never_reaches(world: World, namespace: str, claims: Iterable[str], node: NodeView) -> str:
    """The first of some volume claims whose volume can't be mounted on a node; empty if all can, or do not exist."""
    views = ((name, world.volume_claims.get(Key("PersistentVolumeClaim", namespace, name))) for name in claims)
    return next((name for name, claim in views if claim and not _reaches(world, claim, node)), "")


def unreachable_volume(world: World, namespace: str, claims: Iterable[str], node: NodeView) -> str:
    """Why the first of some volume claims can't be mounted on a node; empty if all can, or do not exist."""
    for name in claims:
        claim = world.volume_claims.get(Key("PersistentVolumeClaim", namespace, name))
        if claim and not _reaches(world, claim, node):
            return f"the volume of volume claim {name} can not be mounted there"
        if claim and _held_elsewhere(world, namespace, name, claim, node):
            return f"volume claim {name} is ReadWriteOnce, and another node uses it"
    return ""


def _reaches(world: World, claim: VolumeClaimView, node: NodeView) -> bool:
    terms = _node_terms(world, claim)
    return not terms or any(all(_meets(node, requirement) for requirement in term) for term in terms)


def _node_terms(world: World, claim: VolumeClaimView) -> Sequence[Sequence[NodeRequirement]]:
    """Which nodes can mount a claim's volume; empty if all can, or if it is not bound yet."""
    volume = world.volumes.get(Key("PersistentVolume", "", claim.volume)) if claim.volume else None
    return volume.node_terms if volume else ()


def _meets(node: NodeView, requirement: NodeRequirement) -> bool:
    value = node.key.name if requirement.key == "metadata.name" else node.labels.get(requirement.key)
    if requirement.operator == "In":
        return value in requirement.values
    if requirement.operator == "NotIn":
        return value not in requirement.values
    if requirement.operator == "Exists":
        return value is not None
    if requirement.operator == "DoesNotExist":
        return value is None
    return False


def _held_elsewhere(world: World, namespace: str, name: str, claim: VolumeClaimView, node: NodeView) -> bool:
    if set(claim.access_modes) != {"ReadWriteOnce"}:  # any other mode may be the one that is used
        return False
    return bool(_nodes_using(world).get((namespace, name), set()) - {node.key.name})


@once_a_world(lambda _world: None)
def _nodes_using(world: World) -> Mapping[tuple[str, str], set[str]]:
    """By namespace and name of a volume claim, the nodes on which a pod mounts it."""
    found: dict[tuple[str, str], set[str]] = {}
    for pods in world.pods_on.values():
        for pod in pods.values():
            for name in () if pod.ended else pod.volume_claims:
                found.setdefault((pod.key.namespace, name), set()).add(pod.node)
    return found
