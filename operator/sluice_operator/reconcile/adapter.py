"""Say where one Adapter answers. The agents load it: they watch Adapters themselves."""

from datetime import datetime

from sluice_operator.observe.views import Key
from sluice_operator.reconcile.context import Context, Requeue, until
from sluice_operator.reconcile.fence import planned
from sluice_operator.reconcile.status import status_writes
from sluice_operator.status.adapter import adapter_status
from sluice_operator.writes import Plan


async def reconcile_adapter(key: Key, c: Context, now: datetime) -> Requeue:
    """Write into one Adapter's status what the agents of its engine report of it."""
    adapter = c.store.world().adapters.get(key)
    if adapter is None or adapter.metadata.deletion_timestamp:
        return None

    plan = planned(c, key, lambda w: Plan(status_writes(adapter, adapter_status(w, adapter, now))), now)

    await c.cluster.do(plan.writes)
    return until(plan.again_at, now)
