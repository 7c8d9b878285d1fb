"""Have pods trust the operator's certificate before they report to it."""

import logging

from sluice_operator.cluster.errors import ApiError, NotLeading, Outdated
from sluice_operator.reconcile.context import Context
from sluice_operator.writes import Refused

logger = logging.getLogger(__name__)


async def publish_trust_everywhere(c: Context) -> None:
    """Write what pods must trust into each namespace with a job or an engine, and into the operator's own (for
    Prometheus).

    A namespace that refuses the write (it is being deleted, or its quota is used up) does not stop the others: its own
    next job or replica shows the refusal. If this process no longer leads, the next leader does the rest.
    """
    world = c.store.world()
    served = {key.namespace for key in (*world.jobs, *world.engines)}
    for namespace in sorted(served | {c.settings.namespace}):
        why: Refused | Exception | None
        try:
            why = await c.cluster.do(c.trust_writes(namespace))
        except NotLeading:
            return
        except (ApiError, Outdated) as error:
            why = error
        if why is not None:
            extra = {"namespace": namespace, "why": why.message if isinstance(why, Refused) else str(why)}
            logger.warning("pods are not told whom to trust", extra=extra)
