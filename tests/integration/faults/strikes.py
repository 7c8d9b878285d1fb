"""What a plan's word means: the rule that makes it happen, and the settings under which it is tried."""

import asyncio
from collections.abc import Awaitable, Callable

from dev.faults.asked import Asked
from dev.faults.rules import At, AtEvent, Event, Nth, Reset, Rule, Silence, Slow, StaleList, error_event, refusal
from tests.integration.faults.outcome import write_name
from tests.integration.faults.plans import Kind, Plan
from tests.integration.faults.trial import Trial, is_here, is_write

SHORT_LEASE_SECONDS = 3
RESYNC_SECONDS = 3
LATE_SECONDS = 2.0
ANSWERS = {Kind.ANSWER_409: 409, Kind.ANSWER_429: 429, Kind.ANSWER_500: 500, Kind.ANSWER_503: 503}
AFTER = (Kind.KILL_AFTER, Kind.RESET_AFTER, Kind.SILENCE_AFTER)


def settings_of(plan: Plan) -> dict[str, object]:
    """Short times where a plan waits for their end."""
    if plan.kind in (Kind.PAUSE, Kind.SILENCE_BEFORE, Kind.SILENCE_AFTER):
        return {"lease_seconds": SHORT_LEASE_SECONDS}
    if plan.kind is Kind.EVENT_LOST:
        return {"resync_seconds": RESYNC_SECONDS}
    return {}


def rules_of(plan: Plan, trial: Trial) -> tuple[list[Rule], Callable[[], bool]]:
    """The rules for the proxy, and whether the fault has struck."""
    if plan.kind is Kind.SLOW:
        return [Slow(float(plan.at.removesuffix(" s")))], lambda: True
    if plan.kind.startswith("event-"):
        at_event = AtEvent(_of_kind(plan, trial), plan.number, _BECOMES[plan.kind])
        return [at_event], at_event.struck.is_set
    if plan.kind is Kind.STALE_LIST:
        return _stale(plan, trial)
    one = Nth(lambda asked: is_write(asked) and write_name(asked) == plan.at, plan.number)
    after = plan.kind in AFTER
    rule: At | Silence
    if plan.kind in (Kind.SILENCE_BEFORE, Kind.SILENCE_AFTER):
        rule = Silence(one, after=after)
    elif plan.kind in ANSWERS:
        rule = At(one, _nothing, answer=refusal(ANSWERS[plan.kind]))
    else:
        strike, lost = {
            Kind.KILL_BEFORE: (trial.kill, True),
            Kind.KILL_AFTER: (trial.kill, True),
            Kind.RESET_BEFORE: (_nothing, True),
            Kind.RESET_AFTER: (_nothing, True),
            Kind.PAUSE: (trial.pause, False),
            Kind.ETCD: (trial.restart_etcd, False),
        }[plan.kind]
        rule = At(one, strike, after=after, lost=lost)
    return [rule], rule.struck.is_set


def _stale(plan: Plan, trial: Trial) -> tuple[list[Rule], Callable[[], bool]]:
    """At an event the watch breaks, and the list that follows shows how its kind was before the last change."""
    stale = StaleList(lambda asked: asked.plural == plan.at)

    async def lie(_event: Event) -> Event:
        newest = trial.scene.history.ordered(plan.at)[-1]
        stale.version = str(newest.revision - 1)
        return error_event(410)

    return [AtEvent(_of_kind(plan, trial), plan.number, lie), stale], stale.struck.is_set


def _of_kind(plan: Plan, trial: Trial) -> Callable[[Asked, Event], bool]:
    return lambda asked, event: asked.plural == plan.at and is_here(event, trial.scene.namespace)


async def _nothing() -> None:
    pass


async def _lost(_event: Event) -> Event | None:
    return None


async def _late(event: Event) -> Event:
    await asyncio.sleep(LATE_SECONDS)
    return event


async def _gone(_event: Event) -> Event:
    return error_event(410)


async def _cut(_event: Event) -> Event:
    raise Reset


_BECOMES: dict[Kind, Callable[[Event], Awaitable[Event | None]]] = {
    Kind.EVENT_LOST: _lost,
    Kind.EVENT_LATE: _late,
    Kind.EVENT_410: _gone,
    Kind.EVENT_CUT: _cut,
}
