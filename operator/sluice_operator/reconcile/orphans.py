"""End what a job has left behind, and in time what somebody has deleted with a longer grace period."""

import logging

from sluice_operator.cluster.errors import Gone
from sluice_operator.cluster.writes import Cluster
from sluice_operator.observe.orphans import runs
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key, PodView, StageJobView

logger = logging.getLogger(__name__)


async def end_orphans(key: Key, store: Store, cluster: Cluster) -> None:
    """Delete stages' Jobs and their pods whose owner is not this job any more, whether there is such a job or not.

    Each is read anew first: what it says of its owner is believed of the object as it is, never of a watch that may be
    late. Those of namespaces that another operator serves are none of ours.
    """
    if not store.serves(key.namespace):
        return
    for view in _left_by(key, store):
        try:
            await cluster.look_at(view.key, view.uid)
        except Gone:
            continue
        if view.uid in {now.uid for now in _left_by(key, store)}:
            logger.warning("ending an orphan", extra={"object": str(view.key), "job": str(key)})
            within = view.in_time if isinstance(view, PodView) else None
            await cluster.delete(view.key, view.uid, foreground=isinstance(view, StageJobView), within=within)


def _left_by(key: Key, store: Store) -> list[StageJobView | PodView]:
    """What runs of it, Jobs first: their pods go with them."""
    place, links = (key.namespace, key.name), store.links
    found: list[StageJobView | PodView] = [*links.orphaned_jobs.groups.get(place, {}).values()]
    found += links.orphaned_pods.groups.get(place, {}).values()
    return [view for view in found if runs(view)]
