"""What was costly to find out is found out once: for one state of the World, or for one version of a job.

The store empties a World's memo after each change; a job's goes with the version of the job.
"""

from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any, TypeVar, TypeVarTuple, cast

from sluice_api.finetunejob import FineTuneJob
from sluice_operator.observe.world import World

Asked = TypeVarTuple("Asked")
Answer = TypeVar("Answer")


def once_a_world(
    key: Callable[[World, *Asked], Hashable],
) -> Callable[[Callable[[World, *Asked], Answer]], Callable[[World, *Asked], Answer]]:
    """Decorate a function of a World, whose answer is kept for as long as the World is the same.

    Args:
        key: what of its arguments the answer depends on.
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


def once_a_job(find: Callable[[World, FineTuneJob], Answer]) -> Callable[[World, FineTuneJob], Answer]:
    """Decorate a function whose answer follows from one job alone, and is kept until the job changes."""

    @wraps(find)
    def found(world: World, job: FineTuneJob) -> Answer:
        memo: dict[Hashable, Any] = world.job_memo(job)
        if found not in memo:
            memo[found] = find(world, job)
        return cast("Answer", memo[found])

    return found
