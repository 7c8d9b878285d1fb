"""Who leads? A coordination.k8s.io Lease decides, taken and renewed with strict optimistic concurrency.

Every write of the operator calls `check` first. Its clock goes on while the process is stopped. So a leader that was
paused knows when it goes on that it no longer leads, before it hears of its successor. A successor waits for the
lease's whole duration from the moment when *it* saw the last renewal, so no two clocks are ever compared.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from sluice_operator.clock import passing
from sluice_operator.cluster.client import Api, Body
from sluice_operator.cluster.errors import ApiError, NotLeading
from sluice_operator.cluster.kinds import KINDS, path_of
from sluice_operator.observe.views import Key

logger = logging.getLogger(__name__)

NAME = "sluice-operator"
_NEW_LEASE_TERM_SECONDS = 60
_AFTER_UNINSTALL_SECONDS = 60


@dataclass(frozen=True, slots=True)
class _Sighting:
    """Another process's renewal, and when we first saw it."""

    holder: str
    renewed: str
    at: float


class Lease:
    """This process's part in the election."""

    def __init__(
        self, api: Api, namespace: str, identity: str, seconds: int, now: Callable[[], float] = passing
    ) -> None:
        """`identity` must be unique to this process: a restarted container is another candidate."""
        self._api = api
        self._key = Key("Lease", namespace, NAME)
        self._identity = identity
        self._seconds = seconds
        self._now = now
        self._body: Body = {}
        self._valid_until = float("-inf")
        self._sighting: _Sighting | None = None
        self.term = 0
        """The lease's transition count when this process last began to lead. It only grows, over all leaders."""

    @property
    def _margin(self) -> float:
        return self._seconds / 5

    @property
    def leads(self) -> bool:
        """Whether this process surely holds the lease."""
        return self._now() < self._valid_until - self._margin

    def check(self) -> float:
        """Seconds for which the lease is surely held. Nothing that begins now may take longer.

        Raises:
            NotLeading: it is not held, or its rest is shorter than the safety margin.
        """
        if not self.leads:
            raise NotLeading(f"{self._identity} does not hold the lease")
        return self._valid_until - self._now()

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Stand for election for ever. Run `lead` while leading, and cancel it when leading ends.

        On cancellation the lease is released, so that another replica need not wait until it expires.
        """
        try:
            while True:
                await self._acquire(self._is_free)
                try:
                    await self._hold(lead)
                except (ApiError, NotLeading) as error:
                    logger.warning("stepping down", extra={"error": str(error)})
                    await self.release()
                    await asyncio.sleep(self._retry_seconds())
        finally:
            await self.release()

    async def take(self) -> None:
        """Take the lease from its holder, and return once that process has surely stopped writing.

        This is for the uninstall hook, which runs beside the operator. The holder's next renewal fails, as its version
        is old.
        """
        await self._acquire(lambda _lease: True)
        logger.info("took the lease; waiting until its former holder has stopped", extra={"term": self.term})
        stopped = self._now() + self._seconds
        while self._now() < stopped:
            await asyncio.sleep(self._seconds / 5)
            await self._renew()

    async def keep(self) -> None:
        """Renew the lease until it is lost."""
        renewed = True
        while self.leads:
            await asyncio.sleep(self._seconds / 5 if renewed else self._retry_seconds())
            renewed = await self._renew()

    async def leave(self) -> None:
        """Stop without a release, so that no other process leads for a while."""
        if self.leads:
            await self._put(self._record(seconds=_AFTER_UNINSTALL_SECONDS))

    async def release(self) -> None:
        """Give the lease up if it is still held."""
        if not self.leads:
            self._valid_until = float("-inf")
            return
        record = self._record(holder="", seconds=1)
        self._valid_until = float("-inf")
        with contextlib.suppress(ApiError, TimeoutError):
            async with asyncio.timeout(3):
                await self._put(record)
                logger.info("released the lease", extra={"term": self.term})

    async def _acquire(self, may_take: Callable[[Body], bool]) -> None:
        """Return once this process leads."""
        while True:
            try:
                body = await self._get()
                if may_take(body) and await self._take_over(body):
                    logger.info("leading", extra={"term": self.term, "identity": self._identity})
                    return
            except ApiError as error:
                logger.warning("the lease cannot be read or written", extra={"error": str(error)})
            await asyncio.sleep(self._retry_seconds())

    async def _hold(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Run `lead` for as long as the lease is renewed."""
        leading = asyncio.ensure_future(lead())
        keeping = asyncio.ensure_future(self.keep())
        try:
            await asyncio.wait({leading, keeping}, return_when=asyncio.FIRST_COMPLETED)
            if leading.done():
                leading.result()
            logger.warning("no longer leading", extra={"term": self.term})
        finally:
            await _end(leading, keeping)

    async def _renew(self) -> bool:
        """Renew once. Returns whether it succeeded.

        If the request fails, the lease is still held until it expires. If it was deleted or another holds it, it is
        lost.
        """
        try:
            if await self._put(self._record()):
                return True
            body = await self._get()
        except ApiError as error:
            logger.warning("the lease could not be renewed", extra={"error": str(error)})
            return False
        if body and body["spec"].get("holderIdentity") == self._identity:
            self._body = body  # an earlier renewal arrived, but its answer got lost
        else:
            self._valid_until = float("-inf")
        return False

    def _is_free(self, body: Body) -> bool:
        """Whether no process holds the lease, judged by watching it for its whole duration."""
        spec = body.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        if not body or holder in ("", self._identity):
            return True
        renewed = spec.get("renewTime") or ""
        lasts = max(self._seconds, spec.get("leaseDurationSeconds") or 0)
        if self._sighting is None or self._sighting.holder != holder:
            logger.info("standing by: another leads", extra={"holder": holder, "free_after_seconds": lasts})
        if self._sighting is None or (self._sighting.holder, self._sighting.renewed) != (holder, renewed):
            self._sighting = _Sighting(holder, renewed, self._now())
        return self._now() >= self._sighting.at + lasts

    async def _take_over(self, body: Body) -> bool:
        """Become the holder with a new term, unless another process was quicker. Returns whether it succeeded.

        If the lease was deleted, the count must not begin at one again, since claims carry it. It then begins with the
        minutes since 1970, which no sequence of transitions has ever reached.
        """
        if body:
            self._body = body
            term = int(body["spec"].get("leaseTransitions") or 0) + 1
        else:
            self._body = {}
            term = int(time.time()) // _NEW_LEASE_TERM_SECONDS
        won = await self._put(self._record(term=term, acquired=True))
        if won:
            self.term = term
            self._sighting = None
        return won

    def _record(
        self, *, holder: str | None = None, seconds: int | None = None, term: int | None = None, acquired: bool = False
    ) -> Body:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        spec = self._body.get("spec") or {}
        return {
            "apiVersion": KINDS["Lease"].api_version,
            "kind": "Lease",
            "metadata": self._body.get("metadata") or {"name": self._key.name, "namespace": self._key.namespace},
            "spec": {
                "holderIdentity": self._identity if holder is None else holder,
                "leaseDurationSeconds": seconds or self._seconds,
                "acquireTime": now if acquired else spec.get("acquireTime"),
                "renewTime": now,
                "leaseTransitions": self.term if term is None else term,
            },
        }

    async def _put(self, record: Body) -> bool:
        """Write the record if the lease is unchanged since it was read. Returns whether that succeeded.

        The lease's duration counts from before the request.
        """
        began = self._now()
        path = path_of(self._key) if self._body else KINDS["Lease"].collection(self._key.namespace)
        method = "PUT" if self._body else "POST"
        try:
            self._body = await self._api.request(
                method, path, body=record, patience=lambda: max(1.0, self._seconds / 3), attempts=1
            )
        except ApiError as error:
            if error.status in (404, 409):
                return False
            raise
        if record["spec"]["holderIdentity"] == self._identity:
            self._valid_until = began + self._seconds
        return True

    async def _get(self) -> Body:
        """The lease as it is; empty if there is none."""
        try:
            return await self._api.request("GET", path_of(self._key), patience=lambda: self._seconds / 3, attempts=1)
        except ApiError as error:
            if error.status == 404:
                return {}
            raise

    def _retry_seconds(self) -> float:
        return self._seconds / 15 * random.uniform(0.8, 1.2)


async def _end(*tasks: asyncio.Future[None]) -> None:
    """Cancel tasks and wait for them. asyncio logs a failure that nothing has read."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
