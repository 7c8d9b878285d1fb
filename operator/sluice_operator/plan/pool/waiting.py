"""What is a waiting job told: for what it waits, since when, and what would end the wait?

Nothing is decided here. The obstacles are those that the decision met.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from math import log10

from sluice_api.finetunejob import FineTuneJob
from sluice_api.reasons import Reason
from sluice_api.scheduling import Policy
from sluice_operator.facts.outcomes import waits_since
from sluice_operator.observe.memo import once_a_job
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World
from sluice_operator.plan.obstacle import Obstacle, Remedy, Wait, WaysToStart, clock, shown
from sluice_operator.plan.stock import Stock, is_guest

TOLD_IN_DETAIL = 10
"""How many jobs at the head of a queue get a detailed message. Further back it would change, and be written, at every
start."""


_WAYS_TOLD = 3
"""The most ways in which a job could start that its message names: the nearest."""


def far_behind(world: World, job: FineTuneJob, ahead: int) -> Wait:
    """Why a job far from the head of the queue waits. It is told in round numbers, which seldom change."""
    least = 10 ** int(log10(ahead))
    in_front = f"At least {least} jobs are in front"
    message = f"{_asked(world, job)}. {in_front}. Next: they get theirs, or raise scheduling.priority."
    return Wait(Reason.BEHIND_IN_QUEUE, message, f"more than {least}")


def waits_for(
    world: World,
    stock: Stock,
    job: FineTuneJob,
    ways: WaysToStart,
    ahead: Sequence[FineTuneJob],
    now: datetime,
    highest: int | None,
) -> Wait:
    """Why a job that has a place in the queue waits.

    Args:
        ahead: the jobs that wait in front.
        highest: the highest priority that the job may have; None if any.
    """
    ways = [_agreeing(way, highest) for way in ways]
    return Wait(
        reason_of(ways),
        message_of(world, job, ways, now),
        str(len(ahead) + 1),
        _starts_at(stock, job, ahead, now),
        tuple(ways),
    )


def waits_outside(world: World, job: FineTuneJob, obstacle: Obstacle, now: datetime) -> Wait:
    """Why a job that is not in the queue waits."""
    ways = ((obstacle,),)
    return Wait(obstacle.reason, message_of(world, job, ways, now), ways=ways)


def _agreeing(way: Sequence[Obstacle], highest: int | None) -> tuple[Obstacle, ...]:
    """A way whose remedies can be followed together: one value for each field, and no priority that is not allowed."""
    strongest: dict[tuple[Key | None, str], Remedy] = {}
    for remedy in (remedy for obstacle in way for remedy in obstacle.remedies if remedy.field):
        field = (remedy.key, remedy.field)
        if field not in strongest or _asks_more(remedy, strongest[field]):
            strongest[field] = remedy

    def agreed(remedies: Iterable[Remedy]) -> Iterator[Remedy]:
        for remedy in remedies:
            found = strongest.get((remedy.key, remedy.field), remedy)
            if found.field != "scheduling.priority" or highest is None or _number(found) <= highest:
                yield found

    return tuple(replace(obstacle, remedies=tuple(agreed(obstacle.remedies))) for obstacle in way)


def _asks_more(one: Remedy, other: Remedy) -> bool:
    """Whether one of two values for a field does what both should: floors are lowered, all else is raised."""
    if one.field == "preemption.minReplicas":
        return _number(one) < _number(other)
    return _number(one) > _number(other)


def _number(remedy: Remedy) -> int:
    return remedy.value if isinstance(remedy.value, int) else 0


def reason_of(ways: WaysToStart) -> Reason:
    """The reason that is shown: the first obstacle of the nearest way."""
    return ways[0][0].reason if ways and ways[0] else Reason.WAITING_FOR_GPUS


def message_of(world: World, job: FineTuneJob, ways: WaysToStart, now: datetime) -> str:
    """The obstacles of the nearest way, and what would end the wait."""
    nearest = ways[0] if ways else ()
    facts = " ".join(dict.fromkeys(obstacle.message for obstacle in nearest))
    remedies = [text for way in ways if (text := _remedy(way, now))]
    following = f" Next: {', or '.join(dict.fromkeys(remedies[:_WAYS_TOLD]))}." if remedies else ""
    return f"{_asked(world, job)}. {shown(facts, job)}{shown(following, job)}"


def _remedy(way: Iterable[Obstacle], now: datetime) -> str:
    """What would end all obstacles of a way, as text; empty if one of them has no remedy and no end."""
    texts = [_text(obstacle, now) for obstacle in way]
    return ", and ".join(dict.fromkeys(texts)) if all(texts) else ""


def _text(obstacle: Obstacle, now: datetime) -> str:
    """What would end one obstacle; empty if it has no remedy and no end."""
    wait = [f"wait until {clock(obstacle.until, now)}"] if obstacle.until else []
    return " or ".join([*wait, *(remedy.text for remedy in obstacle.remedies)])


def _starts_at(stock: Stock, job: FineTuneJob, ahead: Sequence[FineTuneJob], now: datetime) -> datetime | None:
    """An estimate of the job's start; None if it can't be estimated."""
    free = sum(node.free for node in stock.nodes.values() if not node.unusable)
    return None if is_guest(stock.pool, job) else starts_at(stock.returns, free, [*ahead, job], now)


def asked(job: FineTuneJob) -> str:
    """What a job asks for, as text: 1 GPU, 4 GPUs, 2 x 8 GPUs, 30% of a GPU."""
    wanted = job.spec.resources
    if job.spec.scheduling.policy is Policy.SHARED:
        return f"{job.spec.scheduling.share} of a GPU"
    times = f"{wanted.nodes} x " if wanted.nodes > 1 else ""
    return f"{times}{wanted.gpus} GPU{'s' if wanted.all_gpus > 1 else ''}"


@once_a_job
def _asked(_world: World, job: FineTuneJob) -> str:
    """What a job waits for and since when, as the beginning of its message."""
    since = waits_since(job)
    text = f" since {since:%Y-%m-%d %H:%M} UTC" if since else ""
    return f"Waiting for {asked(job)} in pool {job.spec.resources.pool}{text}"


_CLOSE = timedelta(minutes=1)
"""Estimates that differ by less are the same, and so are those that differ by less than `_CLOSE_SHARE` of the rest."""


_CLOSE_SHARE = 0.2


def starts_at(
    returns: Iterable[tuple[datetime, int]], free: int, queue: Sequence[FineTuneJob], now: datetime
) -> datetime | None:
    """When the last job of a queue starts, if all before it start and every claim ends when it is expected to.

    None if the GPUs that come back at a known time are not enough. The nodes that they are on are not considered, so
    the job may start later.

    Args:
        returns: when claims are expected to end, each with its GPUs, the first first.
    """
    asked = sum(job.spec.resources.all_gpus for job in queue)
    if free >= asked:
        return now
    for end, gpus in returns:
        free += gpus
        if free >= asked:
            return max(end, now)
    return None


def settled(before: datetime | None, after: datetime | None, now: datetime) -> datetime | None:
    """The earlier estimate while it is still about right: a status need not be written for every second."""
    if before is None or after is None:
        return after
    close = max(_CLOSE, _CLOSE_SHARE * (after - now))
    return before if abs(after - before) <= close else after


_ORDER = (
    Reason.SCALING_UP,
    Reason.BEHIND_IN_QUEUE,
    Reason.NODE_AVOIDED,
    Reason.ENGINE_MUST_SLEEP,
    Reason.ENGINE_CANNOT_SLEEP,
    Reason.ENGINE_NEVER_LENDS,
    Reason.ENGINE_LENDS_ELSEWHERE,
    Reason.ENGINE_PRIORITY_HIGHER,
    Reason.MULTI_NODE_BORROWS_NONE,
    Reason.TIME_ZONE_UNKNOWN,
    Reason.ENGINE_LENDS_LATER,
    Reason.ENGINE_COOLS_DOWN,
    Reason.ENGINE_IN_DEMAND,
    Reason.ENGINE_HAS_GUESTS,
    Reason.ENGINE_NOT_READY_TO_SLEEP,
    Reason.ENGINE_AT_FLOOR,
    Reason.ENGINE_PROTECTED,
    Reason.NAMESPACE_QUOTA,
)
"""The order in which the obstacles of one way are shown. Reasons that are not listed come last."""


_EASE = {
    **dict.fromkeys((Reason.SCALING_UP, Reason.NODE_AVOIDED, Reason.ENGINE_COOLS_DOWN, Reason.ENGINE_LENDS_LATER), 0),
    **dict.fromkeys((Reason.ENGINE_IN_DEMAND, Reason.BEHIND_IN_QUEUE), 1),
    **dict.fromkeys((Reason.ENGINE_AT_FLOOR, Reason.ENGINE_PROTECTED), 2),
    **dict.fromkeys((Reason.ENGINE_HAS_GUESTS, Reason.ENGINE_NOT_READY_TO_SLEEP, Reason.NAMESPACE_QUOTA), 3),
    **dict.fromkeys((Reason.UNSCHEDULABLE, Reason.WAITING_FOR_GPUS, Reason.WAITING_FOR_SHARE), 5),
    Reason.NO_NODES: 6,
}
"""How hard an obstacle is to end, by reason: 0 ends by itself, higher numbers need more."""


_TERMS = 4
"""The value for all other reasons: they are about what a lender agrees to."""


def hardness(obstacles: Sequence[Obstacle]) -> tuple[int, ...]:
    """Sort key for ways to start: first by the number of obstacles, then by how hard they are to end (`_EASE`), and
    last by the number of obstacles that neither time nor a remedy ends.
    """
    helpless = sum(1 for obstacle in obstacles if obstacle.until is None and not obstacle.remedies)
    return (len(obstacles), *sorted(_EASE.get(obstacle.reason, _TERMS) for obstacle in obstacles), helpless)


def place_in_order(obstacle: Obstacle) -> int:
    """Sort key for the obstacles of one way: the first one's reason is shown."""
    return _ORDER.index(obstacle.reason) if obstacle.reason in _ORDER else len(_ORDER)
