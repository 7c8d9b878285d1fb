"""kopf's watches, but for what kopf makes of an event, and but for their end.

kopf keeps a task, a queue and a memory for each object that has events, so that handlers see one object's events in
order, and works out for each event which handlers it is for (a third of the operator's processor time with thousands
of jobs). Here an event only updates the store, which goes by resourceVersion: it is taken straight off the watch, and
nothing but bookmarks reaches kopf.

kopf raises WatchingError on a watch's ERROR event of any code but 410, and lets a list's failure through; both end the
whole process (nolar/kopf: kopf/_cogs/clients/watching.py, continuous_watch, "Other watch errors should be fatal for the
operator"). An API server that restarts, or an etcd that is slow, sends such events (codes 500 and 504). Here the watch
backs off and lists again, as it does after 410.

And kopf tells nobody what was deleted between two lists. So each new list of kopf's asks for one of ours, which finds
by difference what has vanished.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import kopf
from kopf._cogs.clients import errors, watching

from sluice_operator import metrics
from sluice_operator.clock import passing

logger = logging.getLogger(__name__)

Watch = Callable[..., AsyncIterator[Any]]

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 8.0
FAILURES = (
    watching.WatchingError,
    errors.APIError,
    aiohttp.ClientError,
    TimeoutError,
    ValueError,  # a line of the stream that is no JSON
)


class Watches:
    """All watches of this process: where their events go, when each last gave a sign, and how often it broke."""

    def __init__(
        self,
        take: Callable[[str, kopf.RawEvent], None],
        listed: Callable[[str], None],
        clock: Callable[[], float] = passing,
    ) -> None:
        """`take` is called with a plural name for each event of that kind; `listed` when kopf has listed it anew."""
        self._take = take
        self._listed = listed
        self._clock = clock
        self._signs: dict[str, float] = {}

    def silence(self) -> float:
        """Seconds since the watch that has been silent for longest brought something, or began; 0 before any has.

        That it is tried again and again says nothing: an API server that can't be reached is silent.
        """
        return max((self._clock() - sign for sign in self._signs.values()), default=0.0)

    def install(self) -> None:
        """Put our watch in the place of kopf's, for this process."""
        watching.infinite_watch = self.enduring(watching.infinite_watch)

    def enduring(self, watch: Watch) -> Watch:
        """The bookmarks of the same watch, begun again after every failure."""

        async def endure(*, resource: Any, **options: Any) -> AsyncIterator[Any]:
            failures = 0
            self._signs.setdefault(resource.plural, self._clock())
            while True:
                try:
                    async for event in watch(resource=resource, **options):
                        self._signs[resource.plural] = self._clock()
                        if event is watching.Bookmark.LISTED:
                            failures = 0
                            self._listed(resource.plural)
                        if isinstance(event, watching.Bookmark) or event["type"] == "BOOKMARK":
                            yield event
                        else:
                            self._take(resource.plural, event)
                            await asyncio.sleep(0)  # a page of a list comes at once: others have their turn
                except FAILURES as error:
                    failures += 1
                    metrics.WATCH_ERRORS.labels(resource.plural).inc()
                    pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (failures - 1)) * random.uniform(0.5, 1.0)
                    logger.warning(
                        "a watch broke and begins anew",
                        extra={"kind": resource.plural, "error": str(error), "retry_in": round(pause, 2)},
                    )
                    await asyncio.sleep(pause)
                else:
                    return

        return endure
