"""Decide behind the fence: what is set aside is known to the store, told to people, and looked at again in a while."""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TypeVar

from sluice_api.meta import DEFAULT_POOL
from sluice_api.reasons import Reason
from sluice_operator import metrics
from sluice_operator.cluster.writes import Cluster
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import SetAside, World, key_of, pool_key
from sluice_operator.plan.aside import LOOKED_AT_AGAIN, AnyResource, is_told, set_aside
from sluice_operator.plan.fence import fenced
from sluice_operator.reconcile.status import until, write_status

logger = logging.getLogger(__name__)

Decision = TypeVar("Decision")


def decided(store: Store, mine: Key, decide: Callable[[World], Decision], now: datetime) -> Decision | None:
    """What is decided for one object; None when it is set aside, now or since a while ago.

    Whoever else is found to be at fault is set aside too, and has its own reconcile say so.
    """
    known = store.world().set_aside.get(mine)
    if known is not None:
        if known.at is not None and now < known.at + LOOKED_AT_AGAIN:
            return None
        store.readmit(mine)
        for pool in {*store.world().pools, pool_key(DEFAULT_POOL)}:
            store.wake(pool)
    found = fenced(store.world(), mine, decide)
    for aside in found.aside:
        store.set_aside(SetAside(aside.key, aside.why, at=now))
        metrics.INTERNAL_ERRORS.labels(aside.key.kind).inc()
        extra = {"object": str(aside.key), "why": aside.why, "traceback": aside.trace}
        logger.error("an object is set aside: looking at it raised an exception", extra=extra)
        if aside.key != mine:
            store.wake(aside.key)
    return found.decision


async def say_set_aside(store: Store, cluster: Cluster, resource: AnyResource, now: datetime) -> timedelta | None:
    """Tell people of an object that is set aside: in its status, and once by an event."""
    key, uid = key_of(resource), resource.metadata.uid
    found = store.world().set_aside.get(key)
    if found is None or found.at is None:
        return None
    told = set_aside(resource, found, now)
    if not is_told(resource):
        await cluster.event(key, uid, "Warning", Reason.INTERNAL_ERROR, found.why)
    await write_status(cluster, resource, told.status, exclude={"progress"} if key.kind == "FineTuneJob" else None)
    store.set_aside(found)  # what has changed is only what we said
    return until(found.at + LOOKED_AT_AGAIN, now)
