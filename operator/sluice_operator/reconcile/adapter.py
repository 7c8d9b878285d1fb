"""Say where one Adapter answers. Loading it is the agents' work: they watch Adapters themselves."""

from datetime import datetime, timedelta

from sluice_operator.cluster.writes import Cluster
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key
from sluice_operator.plan.adapter import adapter_status
from sluice_operator.reconcile.fence import decided, say_set_aside
from sluice_operator.reconcile.status import write_status
from sluice_operator.settings import Settings


async def reconcile_adapter(
    key: Key, store: Store, cluster: Cluster, settings: Settings, now: datetime
) -> timedelta | None:
    """Mirror what the engine's agents report of one Adapter."""
    world = store.world()
    adapter = world.adapters.get(key)
    if adapter is None or adapter.metadata.deletion_timestamp:
        return None

    status = decided(store, key, lambda world: adapter_status(world, adapter, now), now)
    if status is None:
        return await say_set_aside(store, cluster, adapter, now)

    await write_status(cluster, adapter, status)
    return None
