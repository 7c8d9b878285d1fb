"""What a watch lost: full lists by difference, from time to time and whenever a watch had to begin anew."""

import asyncio
import logging
from collections.abc import Callable

from sluice_operator.cluster.client import Api
from sluice_operator.cluster.errors import ApiError
from sluice_operator.cluster.kinds import KINDS
from sluice_operator.cluster.lists import look_for_api_servers, refresh
from sluice_operator.observe.parse import WATCHED
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key

logger = logging.getLogger(__name__)

PAUSE_AFTER_FAILURE = 2.0
KIND_OF = {KINDS[kind].plural: kind for kind in WATCHED}
"""Watched kinds by the names that watches give them."""


class Resync:
    """Keeps the store true to the API server, whatever the watches do."""

    def __init__(
        self, api: Api, store: Store, seconds: float, enqueue: Callable[[Key], None] = lambda _key: None
    ) -> None:
        """`seconds` is the time between two full rounds; `enqueue` has a key reconciled."""
        self._enqueue = enqueue
        self._api = api
        self._store = store
        self._seconds = seconds
        self._due: set[str] = set()
        self._wanted = asyncio.Event()
        self._never_listed = set(WATCHED)

    @property
    def is_primed(self) -> bool:
        """Whether every kind has been listed in full: before that, nothing may be decided."""
        return self._never_listed.isdisjoint(self._store.watched)

    def want(self, plural: str) -> None:
        """Have a kind listed soon."""
        if plural in KIND_OF:
            self._due.add(KIND_OF[plural])
            self._wanted.set()

    async def run(self) -> None:
        """List for ever what is wanted, and every kind when its time has come. kopf's first lists want every kind."""
        while True:
            await self._list_due()
            try:
                async with asyncio.timeout(self._seconds):
                    await self._wanted.wait()
            except TimeoutError:
                self._due.update(self._store.watched)
                await self._look_for_api_servers()
            self._wanted.clear()

    async def _look_for_api_servers(self) -> None:
        """Where they are changes seldom; what fails is tried again in the next round."""
        try:
            moved = await look_for_api_servers(self._api, self._store)
        except ApiError as error:
            logger.warning("no look at where the API server is", extra={"error": str(error)})
            return
        for engine in self._store.world().engines if moved else ():
            self._enqueue(engine)  # the NetworkPolicies of their pods name it

    async def _list_due(self) -> None:
        """One attempt for each kind that is due. What fails is due again after a pause; nothing waits for another."""
        due, self._due = self._due, set()
        failed = set()
        for kind in due:
            try:
                await refresh(self._api, self._store, kind)
                self._never_listed.discard(kind)
            except ApiError as error:
                logger.warning("a list failed and is tried again", extra={"kind": kind, "error": str(error)})
                failed.add(kind)
        if failed:
            await asyncio.sleep(PAUSE_AFTER_FAILURE)
            self._due |= failed
            self._wanted.set()
