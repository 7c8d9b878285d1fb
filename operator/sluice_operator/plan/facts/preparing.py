"""How many jobs prepare their data at once: at most so many of a pool, and of a namespace in it."""

from sluice_api.finetunejob import FineTuneJob
from sluice_operator.observe.world import World, key_of
from sluice_operator.plan.facts.belief import owner_of
from sluice_operator.plan.facts.pools import find_pool


def no_room_to_prepare(world: World, job: FineTuneJob) -> str:
    """Why a job does not begin to prepare its data now; empty when it may."""
    name, namespace = job.spec.resources.pool, job.metadata.namespace
    pool = find_pool(world, name)
    if pool is None:
        return ""
    limits = pool.spec.prepare
    others = [other for other in _preparing(world, name) if other.metadata.uid != job.metadata.uid]
    if len(others) >= limits.at_once:
        return (
            f"{len(others)} jobs of pool {name} prepare their data, as many as its spec.prepare.atOnce allows. "
            "It begins when one of them has ended."
        )
    beside = sum(other.metadata.namespace == namespace for other in others)
    if beside >= limits.per_namespace:
        return (
            f"{beside} jobs of namespace {namespace} prepare their data in pool {name}, as many as its "
            "spec.prepare.perNamespace allows. It begins when one of them has ended."
        )
    return ""


def next_to_prepare(world: World, pool: str) -> list[FineTuneJob]:
    """Jobs that wait to prepare their data and may begin now: the oldest of each namespace.

    One of each, because a namespace's own users may have written what the status of its jobs says.
    """
    oldest: dict[str, FineTuneJob] = {}
    for job in world.to_prepare.get(pool, {}).values():
        if job.metadata.deletion_timestamp or job.spec.managed_by:
            continue
        known = oldest.get(job.metadata.namespace)
        if known is None or _age(job) < _age(known):
            oldest[job.metadata.namespace] = job
    return [job for job in sorted(oldest.values(), key=_age) if not no_room_to_prepare(world, job)]


def _age(job: FineTuneJob) -> tuple[str, str]:
    created = job.metadata.creation_timestamp
    return (created.isoformat() if created else "", job.metadata.name)


def _preparing(world: World, pool: str) -> list[FineTuneJob]:
    """Jobs of a pool whose data is being prepared, or is about to be."""
    owners = (owner_of(world, stage_job) for stage_job in world.preparing.values())
    known = {key_of(job): job for job in owners if job is not None}
    known |= {key: world.jobs[key] for key in world.starting if key in world.jobs}
    return [job for job in known.values() if job.spec.resources.pool == pool]
