"""Beside which replica may a job train, and with how much of a GPU?

Several pods of a namespace may use one ResourceClaim. So a job of policy Shared uses the slot's claim, with its share
of the GPU's memory, while vLLM goes on with its own part. Such a guest has no GPU of its own. A slot that has guests is
not lent.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool, SharingMode
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.reasons import Reason
from sluice_operator.facts.nodes import engines_of, slot_devices
from sluice_operator.facts.slots import left_by
from sluice_operator.observe.fence import each
from sluice_operator.observe.memo import once_a_world
from sluice_operator.observe.world import World, engine_key, key_of
from sluice_operator.plan.obstacle import Obstacle
from sluice_operator.plan.stock import NodeStock, PlacedSlot, is_guest, share_of


def sharing_refusal(pool: GPUPool, job: FineTuneJob) -> Obstacle | None:
    """Why a pool can't give a job the share that it asks for; None if it can, or if the job asks for no share."""
    share, name, parts = share_of(pool, job), pool.metadata.name, pool.spec.sharing.replicas or 1
    if share is None:
        return None
    if share.mode is SharingMode.NONE:
        return Obstacle(
            Reason.POOL_DOES_NOT_SHARE,
            f"spec.scheduling.policy: Shared, but the nodes of GPUPool {name} give each GPU to one pod. Use Queue or "
            "Preempt, or set the pool's spec.sharing as its device plugin is set up.",
            ends_with=(key_of(pool),),
        )
    if share.mode is SharingMode.MPS and share.percent > 100 // parts:
        return Obstacle(
            Reason.SHARE_TOO_LARGE,
            f"spec.scheduling.share: {share.percent}% is asked for, MPS gives a pod of GPUPool {name} one of {parts} "
            f"parts of a GPU. Ask for at most {100 // parts}%.",
            ends_with=(key_of(pool),),
        )
    return None


class Beside(NamedTuple):
    """A slot beside which a job could train."""

    slot: PlacedSlot
    percent: int
    """How much of its GPUs' memory is left; below zero if vLLM and guests ask for more than there is."""
    obstacles: tuple[Obstacle, ...] = ()
    """What keeps the job from training there now; empty if nothing does."""


def hosts(world: World, pool: GPUPool, job: FineTuneJob) -> list[InferenceEngine]:
    """Engines that would leave a job enough memory beside a replica, if the replica had no other guest."""
    share, gpus = job.spec.scheduling.share_percent, job.spec.resources.gpus
    found = _neighbours(world, pool).get(job.metadata.namespace, ())
    return [engine for engine in found if left_by(engine) >= share and engine.spec.resources.gpus >= gpus]


@once_a_world(lambda _world, pool: pool.metadata.name)
def _neighbours(world: World, pool: GPUPool) -> Mapping[str, Sequence[InferenceEngine]]:
    """A pool's engines by namespace, as a ResourceClaim can be shared there only. The most memory left comes first."""
    found: dict[str, list[InferenceEngine]] = {}
    engines = each(engines_of(world, pool), key_of, lambda engine: (left_by(engine), engine))
    for _, engine in sorted(engines, key=lambda one: one[0], reverse=True):
        found.setdefault(engine.metadata.namespace, []).append(engine)
    return found


def guest_refusal(world: World, pool: GPUPool, job: FineTuneJob) -> Obstacle | None:
    """Why no engine of a pool could ever have a job as its guest; None if one could, or if the job is not a guest."""
    if not is_guest(pool, job):
        return None
    name, namespace = pool.metadata.name, job.metadata.namespace
    roomiest = next(iter(_neighbours(world, pool).get(namespace, ())), None)
    if roomiest is None:
        return Obstacle(
            Reason.NO_ENGINE_TO_SHARE_WITH,
            f"spec.scheduling.policy: Shared trains beside a replica of an engine in GPUPool {name}, and namespace "
            f"{namespace} has no engine there. Use Queue or Preempt, or run it in the namespace of one.",
            ends_with=(key_of(pool), engine_key(namespace, "")),
        )
    if left_by(roomiest) < job.spec.scheduling.share_percent:
        return Obstacle(
            Reason.SHARE_TOO_LARGE,
            f"spec.scheduling.share: {job.spec.scheduling.share} is asked for, engine {roomiest.metadata.name} leaves "
            f"{left_by(roomiest)}% of a GPU's memory: its serving.gpuMemoryUtilization is "
            f"{roomiest.spec.serving.gpu_memory_utilization}. Ask for at most {left_by(roomiest)}%, or lower it.",
            ends_with=(key_of(pool), engine_key(namespace, "")),
        )
    return None


def best_beside(node: NodeStock, job: FineTuneJob, engines: Collection[str], *, strict: bool) -> Beside | None:
    """The best slot on a node for a guest: the least busy, then the tightest fit; None if there is none.

    Args:
        engines: uids of the engines that may be hosts.
        strict: True for only a slot that takes the guest now. Otherwise the slot with the fewest obstacles is returned,
            with those obstacles.
    """
    places = [_beside(slot, job) for slot in _beside_slots(node, job) if slot.engine.metadata.uid in engines]
    fitting = [place for place in places if not (strict and place.obstacles)]
    return min(fitting, key=lambda at: (len(at.obstacles), *_tightness(at, job)), default=None)


def _tightness(at: Beside, job: FineTuneJob) -> tuple[int, int, str]:
    """Sort key: of slots with enough memory the least busy, then the tightest fit; of others the roomiest first."""
    enough = at.percent >= job.spec.scheduling.share_percent
    return (at.slot.in_flight if enough else 0, at.percent if enough else -at.percent, str(at.slot.slot))


def _beside(slot: PlacedSlot, job: FineTuneJob) -> Beside:
    """A slot as a place for a guest, with what keeps the job from training there."""
    percent, share = left_by(slot.engine) - slot.shared, job.spec.scheduling.share_percent
    message = ""
    if not slot.takes_guests:
        message = f"{slot.slot} takes none now: it wakes, restarts with a changed spec, or goes."
    elif percent < share:
        message = (
            f"{slot.slot} leaves the most, {max(0, percent)}%: vLLM takes {100 - left_by(slot.engine)}% "
            f"(serving.gpuMemoryUtilization), jobs beside it {slot.shared}%."
        )
    obstacle = Obstacle(Reason.WAITING_FOR_SHARE, message, ends_with=(key_of(slot.engine),)) if message else None
    return Beside(slot, percent, (obstacle,) if obstacle else ())


def _beside_slots(node: NodeStock, job: FineTuneJob) -> Iterator[PlacedSlot]:
    """The slots of a node that are in a job's namespace and have GPUs enough for it."""
    for slot in node.slots:
        mine = slot.engine.metadata.namespace == job.metadata.namespace
        if mine and slot.pod and slot.gpus >= job.spec.resources.gpus:  # with a pod there is a ResourceClaim
            yield slot


def crowds_out(world: World, pool: GPUPool, slot: PlacedSlot) -> bool:
    """Whether a restart with the present spec would take memory or devices that a slot's guests use."""
    engine = slot.engine
    if not slot.shared:
        return False
    devices = slot_devices(world, engine, slot.slot.index)
    asks = (pool.spec.sharing.device_class, engine.spec.resources.gpus)
    return slot.shared > left_by(engine) or (devices is not None and devices.asks != asks)
