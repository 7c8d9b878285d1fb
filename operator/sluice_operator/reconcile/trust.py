"""Have pods trust the operator's certificate before they report to it."""

from sluice_operator.build.trust import trust
from sluice_operator.cluster.writes import Cluster
from sluice_operator.observe.store import Store
from sluice_operator.settings import Settings


async def publish_trust(cluster: Cluster, namespace: str) -> None:
    """Write what pods of a namespace trust, if it is not there yet; nothing where reports go without TLS."""
    if cluster.trusted:
        await cluster.apply(trust(namespace, cluster.trusted))


async def publish_trust_everywhere(cluster: Cluster, store: Store, settings: Settings) -> None:
    """The same for every namespace that has a job or an engine, and for the operator's own, where Prometheus reads."""
    world = store.world()
    served = {key.namespace for key in (*world.jobs, *world.engines)}
    for namespace in sorted(served | {settings.namespace}):
        await publish_trust(cluster, namespace)
