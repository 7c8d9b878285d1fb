"""Under which keys does each index of the store find an object? A function returns none, one or several keys.

Stage Jobs and Deployments that only look as if Sluice had made them (`is_ours`) are not found by maker or claim. Pods
and ResourceClaims are found by their labels.
"""

from sluice_api.finetunejob import FineTuneJob
from sluice_api.meta import ENGINE_LABEL, PLACEHOLDER_LABEL, SCALE_UP_LABEL, SLOT_LABEL, index_of
from sluice_api.reasons import Reason
from sluice_api.stages import Stage
from sluice_operator.observe.views import DeviceClaimView, PodView, SliceView, SlotView, StageJobView, View
from sluice_operator.observe.world import Identity


def by_controller(view: View) -> tuple[Identity, ...]:
    """The object's controller, which is in its own namespace."""
    return ((view.key.namespace, view.owner.uid),) if view.owner else ()


def by_maker(view: StageJobView | SlotView) -> tuple[Identity, ...]:
    """The job or engine for which Sluice made it."""
    return by_controller(view) if view.is_ours else ()


def by_node(pod: PodView) -> tuple[str, ...]:
    """The node that the pod is bound to."""
    return (pod.node,) if pod.node else ()


def by_nominated_node(pod: PodView) -> tuple[str, ...]:
    """The node that the pod is nominated to, while it is not bound."""
    return (pod.nominated_node,) if pod.nominated_node and not pod.node else ()


def by_device_node(view: SliceView | DeviceClaimView) -> tuple[str, ...]:
    """The node of its devices."""
    return (view.node,) if view.node else ()


def by_engine(claim: DeviceClaimView) -> tuple[tuple[str, str], ...]:
    """The engine that the ResourceClaim's slot belongs to."""
    engine = claim.labels.get(ENGINE_LABEL)
    return ((claim.key.namespace, engine),) if engine else ()


def by_slot(pod: PodView) -> tuple[tuple[str, str, int], ...]:
    """The slot of an engine that the pod belongs to."""
    engine, index = pod.labels.get(ENGINE_LABEL), index_of(pod.labels.get(SLOT_LABEL, ""))
    return ((pod.key.namespace, engine, index),) if engine and index is not None else ()


def by_reserving_engine(pod: PodView) -> tuple[tuple[str, str], ...]:
    """The engine for which the pod, a placeholder, keeps GPUs."""
    engine = pod.labels.get(PLACEHOLDER_LABEL)
    return ((pod.key.namespace, engine),) if engine else ()


def by_asking_pool(pod: PodView) -> tuple[str, ...]:
    """The pool for which the pod asks for nodes."""
    pool = pod.labels.get(SCALE_UP_LABEL)
    return (pool,) if pool else ()


def by_having_claim(stage_job: StageJobView) -> tuple[bool, ...]:
    """One group: the stage Jobs that carry a claim."""
    return (True,) if stage_job.claim and stage_job.is_ours else ()


def by_namespace(view: View) -> tuple[str, ...]:
    """Its namespace."""
    return (view.key.namespace,)


def by_claimed_node(stage_job: StageJobView) -> tuple[str, ...]:
    """The nodes of its claim."""
    return tuple(place.node for place in stage_job.claim.places) if stage_job.claim and stage_job.is_ours else ()


def by_lender(stage_job: StageJobView) -> tuple[tuple[str, str], ...]:
    """The engines from which its claim borrows."""
    borrowed = stage_job.claim.borrowed if stage_job.claim and stage_job.is_ours else ()
    return tuple(dict.fromkeys((slot.namespace, slot.engine) for slot in borrowed))


def by_preempted_attempt(stage_job: StageJobView) -> tuple[str, ...]:
    """The uids of the attempts that its claim preempts."""
    return tuple(stage_job.claim.preempted) if stage_job.claim and stage_job.is_ours else ()


def by_preparing(stage_job: StageJobView) -> tuple[bool, ...]:
    """One group: the stage Jobs that prepare data and have not finished."""
    return (True,) if stage_job.stage is Stage.PREPARE and not stage_job.finished else ()


def by_unprepared_pool(job: FineTuneJob) -> tuple[str, ...]:
    """The pool of a job that waits to prepare its data, as its status says."""
    return (job.spec.resources.pool,) if job.status.summary == Reason.WAITING_TO_PREPARE else ()


def by_unfinished_pool(job: FineTuneJob) -> tuple[str, ...]:
    """The pool of a job that has neither succeeded nor failed, as its status says."""
    return () if job.status.finished_at else (job.spec.resources.pool,)
