"""Decide inside the fence: an object that raises is set aside, remembered, shown, and looked at again later."""

import logging
from collections.abc import Callable
from datetime import datetime
from typing import TypeVar

from sluice_api.meta import DEFAULT_POOL
from sluice_api.reasons import Reason
from sluice_operator import metrics
from sluice_operator.observe.fence import fenced
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import SetAside, World, pool_key
from sluice_operator.reconcile.context import Context, Requeue, until
from sluice_operator.reconcile.status import status_writes
from sluice_operator.status.aside import LOOKED_AT_AGAIN, is_shown, set_aside_status
from sluice_operator.writes import Event, Plan

logger = logging.getLogger(__name__)

Decision = TypeVar("Decision")
AnyPlan = TypeVar("AnyPlan", bound=Plan)


def planned(c: Context, mine: Key, plan: Callable[[World], AnyPlan], now: datetime) -> AnyPlan | Plan:
    """The plan for one object; if it is set aside, a plan that says so in its status.

    Args:
        mine: the object.
        plan: makes its plan from a World without the objects that are set aside.
    """
    found = decided(c, mine, plan, now) or _set_aside(c, mine, now)
    c.wakeups.wait(mine, found.ends_with)  # before anything is awaited: no change is missed
    return found


def decided(c: Context, mine: Key, decide: Callable[[World], Decision], now: datetime) -> Decision | None:
    """What `decide` returns for one object; None when the object is set aside, now or since a while ago.

    Other objects at fault are set aside too. Their own reconciles tell people.
    """
    known = c.store.findings.set_aside.get(mine)
    if known is not None:
        if known.at is not None and now < known.at + LOOKED_AT_AGAIN:
            return None
        _readmit(c, mine)
    found = fenced(c.store.world(), mine, decide)
    for aside in found.aside:
        c.store.findings.leave_alone(SetAside(aside.key, aside.why, at=now))
        metrics.INTERNAL_ERRORS.labels(aside.key.kind).inc()
        extra = {"object": str(aside.key), "why": aside.why, "traceback": aside.trace}
        logger.error("an object is set aside: looking at it raised an exception", extra=extra)
        if aside.key != mine:
            c.enqueue(aside.key)
    return found.decision


async def reconcile_node(key: Key, c: Context, now: datetime) -> Requeue:
    """Have the pools look again at a node that was set aside a while ago. The log says why it was: it has no status."""
    known = c.store.findings.set_aside.get(key)
    if known is None or known.at is None:
        return None
    if now < known.at + LOOKED_AT_AGAIN:
        return until(known.at + LOOKED_AT_AGAIN, now)
    _readmit(c, key)
    return None


def _readmit(c: Context, key: Key) -> None:
    c.store.findings.readmit(key)
    for pool in {*c.store.world().pools, pool_key(DEFAULT_POOL)}:
        c.enqueue(pool)


def _set_aside(c: Context, key: Key, now: datetime) -> Plan:
    """Tell people that an object is set aside, in its status and once by an event; neither if it does not exist."""
    found, resource = c.store.findings.set_aside.get(key), c.store.world().resource(key)
    if resource is None or found is None or found.at is None:
        return Plan(again_at=now + LOOKED_AT_AGAIN)
    event = Event(key, resource.metadata.uid, "Warning", Reason.INTERNAL_ERROR, found.why)
    writes = status_writes(resource, set_aside_status(resource, found, now))
    return Plan((*(() if is_shown(resource) else (event,)), *writes), found.at + LOOKED_AT_AGAIN)
