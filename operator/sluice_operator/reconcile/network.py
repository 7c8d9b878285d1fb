"""Keep the NetworkPolicy of an engine or a job: before its pods, and gone when it is switched off."""

import json

from sluice_operator.build.metadata import Manifest
from sluice_operator.cluster.writes import Cluster, key_of_manifest
from sluice_operator.observe.store import Store
from sluice_operator.settings import Settings

_REMEMBERED = 20_000
"""Policies. When there are more, all are written once more; nothing else depends on it."""


async def keep_policy(policy: Manifest, store: Store, cluster: Cluster, settings: Settings) -> None:
    """Have a policy be as it should be, unless that was done in this term and nothing has changed since.

    Nobody watches policies: one that somebody deletes is there again with the next change or the next leader.
    """
    wanted = json.dumps(policy, sort_keys=True) if settings.network.workloads else None
    key, done = key_of_manifest(policy), (cluster.term, hash(wanted))
    if store.settled.get(key) == done:
        return
    if wanted is None:
        await cluster.remove(policy)
    else:
        await cluster.apply(policy)
    if len(store.settled) >= _REMEMBERED:
        store.settled.clear()
    store.settled[key] = done
