"""Jobs that use a part of a GPU, beside whatever else runs on it."""

from decimal import ROUND_FLOOR, Decimal

from sluice_api.claim import Share
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool, SharingMode
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.reasons import Reason
from sluice_api.scheduling import Policy
from sluice_operator.observe.world import key_of
from sluice_operator.plan.obstacle import Obstacle


def share_of(pool: GPUPool, job: FineTuneJob) -> Share | None:
    """What of a GPU a job uses; None when its GPUs are its own."""
    if job.spec.scheduling.policy is not Policy.SHARED:
        return None
    return Share(mode=pool.spec.sharing.mode, percent=job.spec.scheduling.share_percent)


def left_by(engine: InferenceEngine) -> int:
    """Percent of its GPUs' memory that an engine's vLLM leaves to others."""
    taken = Decimal(engine.spec.serving.gpu_memory_utilization)
    if taken >= 1:
        return 0
    return max(0, int((100 * (1 - taken)).to_integral_value(ROUND_FLOOR)))


def sharing_refusal(pool: GPUPool, job: FineTuneJob) -> Obstacle | None:
    """Why a pool can't give a job the share that it asks for; None when it can, or when none is asked for."""
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
