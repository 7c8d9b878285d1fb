"""Costly answers are found once: for one state of the World, or for one version of a job.

The store empties a World's memo after each change. A job's memo goes with that version of the job.
"""

from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any, TypeVar, TypeVarTuple, cast

from sluice_api.finetunejob import FineTuneJob
from sluice_operator.observe.world import World, identity

Asked = TypeVarTuple("Asked")
Answer = TypeVar("Answer")


def once_a_world(
    key: Callable[[World, *Asked], Hashable],
) -> Callable[[Callable[[World, *Asked], Answer]], Callable[[World, *Asked], Answer]]:
    """Decorate a function of a World so that its answer is kept until the World changes.

    Args:
        key: the part of the arguments that the answer depends on.
    """

    def decorate(find: Callable[[World, *Asked], Answer]) -> Callable[[World, *Asked], Answer]:
        @wraps(find)
        def found(world: World, *args: *Asked) -> Answer:
            asked = (found, key(world, *args))
            if asked not in world.memo:
                world.memo[asked] = find(world, *args)
            return cast("Answer", world.memo[asked])

        return found

    return decorate


def once_a_record(find: Callable[[World, FineTuneJob], Answer]) -> Callable[[World, FineTuneJob], Answer]:
    """Decorate a function whose answer depends on one job and its Jobs. It is kept while there are none of these.

    Thousands of jobs may wait, and a job that waits has no Jobs, only the record of those that it had.
    """
    kept = once_a_job(find)

    @wraps(find)
    def found(world: World, job: FineTuneJob) -> Answer:
        return (find if world.stage_jobs_of.get(identity(job)) else kept)(world, job)

    return found


def once_a_job(find: Callable[[World, FineTuneJob], Answer]) -> Callable[[World, FineTuneJob], Answer]:
    """Decorate a function whose answer depends on one job alone, so that it is kept until the job changes."""

    @wraps(find)
    def found(world: World, job: FineTuneJob) -> Answer:
        memo: dict[Hashable, Any] = world.job_memo(job)
        if found not in memo:
            memo[found] = find(world, job)
        return cast("Answer", memo[found])

    return found
