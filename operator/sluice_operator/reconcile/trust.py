"""Have pods trust the operator's certificate before they report to it."""

import logging

from sluice_operator.build.trust import trust
from sluice_operator.cluster.errors import ApiError, NotLeading, Outdated
from sluice_operator.cluster.writes import Cluster
from sluice_operator.observe.store import Store
from sluice_operator.settings import Settings

logger = logging.getLogger(__name__)


async def publish_trust(cluster: Cluster, namespace: str) -> None:
    """Write what pods of a namespace trust, if it is not there yet; nothing where reports go without TLS."""
    if cluster.trusted:
        await cluster.apply(trust(namespace, cluster.trusted))


async def publish_trust_everywhere(cluster: Cluster, store: Store, settings: Settings) -> None:
    """The same for every namespace that has a job or an engine, and for the operator's own, where Prometheus reads.

    A namespace that refuses it (it is on its way out, its quota is used up) harms no other: its own next job or
    replica is told. Who leads no more leaves the rest to the next leader.
    """
    world = store.world()
    served = {key.namespace for key in (*world.jobs, *world.engines)}
    for namespace in sorted(served | {settings.namespace}):
        try:
            await publish_trust(cluster, namespace)
        except NotLeading:
            return
        except (ApiError, Outdated) as error:
            logger.warning("pods are not told whom to trust", extra={"namespace": namespace, "why": str(error)})
