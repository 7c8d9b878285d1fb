"""One attempt of a stage and its pods."""

from datetime import datetime, timedelta

from sluice_operator.observe.views import PodView, StageJobView
from sluice_operator.observe.world import World, identity, oldest_first
from sluice_operator.plan.facts.belief import believed, owner_of


def trainer_pods(world: World, stage_job: StageJobView) -> list[PodView]:
    """The pods of a stage Job, oldest first."""
    return oldest_first(world.pods_of.get(identity(stage_job), {}).values())


def has_its_nodes(world: World, stage_job: StageJobView) -> bool:
    """Whether all pods of an attempt are on their nodes, or were."""
    pods = trainer_pods(world, stage_job)
    return bool(stage_job.finished or (pods and all(pod.node for pod in pods)))


def heir_of(world: World, stage_job: StageJobView) -> StageJobView | None:
    """The attempt that has come in another's place and has its GPUs, once that one's pods have ended."""
    coming = world.displacing.get(stage_job.uid)
    if not coming or not all(pod.ended for pod in trainer_pods(world, stage_job)):
        return None
    return next(
        (other for other in coming.values() if has_its_nodes(world, other) and _comes(world, other, stage_job)), None
    )


def _comes(world: World, heir: StageJobView, stage_job: StageJobView) -> bool:
    """Whether an attempt could really come in another's place."""
    job = owner_of(world, heir)
    claim = believed(world, job, heir) if job else None
    return claim is not None and stage_job.uid in claim.displaced


def made_after(world: World, stage_job: StageJobView, ended: datetime) -> bool:
    """Whether a Job was made after its attempt had ended. When it was made is known to the second."""
    pods = trainer_pods(world, stage_job)
    if not pods or any(pod.ended for pod in pods):
        return not pods and stage_job.created > ended
    return stage_job.created > ended - timedelta(seconds=1)
