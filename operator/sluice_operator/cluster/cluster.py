"""The API server as reconcilers see it: it does what a decision asks for, one write after the other."""

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from typing import assert_never

from sluice_operator.cluster.client import Api
from sluice_operator.cluster.errors import ApiError, NameTaken, NotLeading, Outdated
from sluice_operator.cluster.writes import Leadership, Writer
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key
from sluice_operator.writes import (
    TELLS,
    Annotate,
    Apply,
    Bind,
    Create,
    Delete,
    Event,
    Keep,
    Nominate,
    Refused,
    Require,
    Scale,
    Status,
    Write,
    key_of_manifest,
)

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 16
"""The most sequences of writes at once. More would only wait at the API server, in front of other clients' requests."""
_MOST_KEPT = 20_000
"""The most objects for which `Keep` remembers what it wrote. When there are more, all are written once more."""

Failure = Refused | Exception


class Cluster(Writer):
    """Does writes, in order.

    Every method raises NotLeading if this process does not surely hold the lease, Outdated if the object is gone or has
    changed (the store knows by then), and ApiError for every other failure.
    """

    def __init__(self, api: Api, store: Store, leadership: Leadership, reporter: str) -> None:
        """`reporter` is this process's name in events."""
        super().__init__(api, store, leadership, reporter)
        self._kept: dict[Key, tuple[int, int]] = {}
        """For each `Keep` the term and the content that were last written."""

    async def do(self, writes: Sequence[Write]) -> Refused | None:
        """Do writes in order, up to the first that the API server refuses.

        After an ApiError that is no refusal, the `TELLS` among the rest are still done, and then it is raised. After a
        refusal, NotLeading or Outdated nothing more is done.

        Returns:
            The refusal; None if there was none.
        """
        failure: ApiError | None = None
        made: dict[Key, str] = {}
        for write in writes:
            if failure is not None and not isinstance(write, TELLS):
                continue
            try:
                await self._do(write, made)
            except ApiError as error:
                if isinstance(write, TELLS):
                    raise
                if error.is_refusal:
                    return Refused(write, isinstance(error, NameTaken), error.message)
                failure = error
        if failure is not None:
            raise failure
        return None

    async def do_each(self, sequences: Mapping[Key, Sequence[Write]]) -> dict[Key, Failure]:
        """Do independent sequences of writes, some of them at once. All have ended when it returns.

        Returns:
            The refusal or failure of each sequence that had one.

        Raises:
            NotLeading: this process may no longer write. The failures of the other sequences are then dropped.
        """
        places = asyncio.Semaphore(MOST_AT_ONCE)

        async def one(writes: Sequence[Write]) -> Refused | None:
            async with places:
                return await self.do(writes)

        ended = await asyncio.gather(*(one(writes) for writes in sequences.values()), return_exceptions=True)
        failed: dict[Key, Failure] = {}
        for key, end in zip(sequences, ended, strict=True):
            if isinstance(end, NotLeading) or (isinstance(end, BaseException) and not isinstance(end, Exception)):
                raise end
            if end is not None:
                failed[key] = end
        return failed

    async def _do(self, write: Write, made: dict[Key, str]) -> None:  # noqa: C901, PLR0912 - a line for each kind
        """Do one write.

        Args:
            made: uids of the objects that were created before; this write may add one.
        """
        match write:
            case Require(key, uid):
                await self.require(key, uid)
            case Create():
                await self._make(write, made)
            case Apply(manifest):
                await self.apply(manifest)
            case Keep():
                await self._keep(write)
            case Annotate(key, uid, annotations):
                await self.annotate(key, uid, dict(annotations))
            case Bind(key, uid, hostname, at):
                await self.bind_pod(key, uid, hostname, at)
            case Nominate(key, uid, node):
                if uid or key in made:
                    await self.nominate_pod(key, uid or made[key], node)
            case Scale(key, uid, size):
                await self.scale_slot(key, uid, size)
            case Delete(key, uid, foreground, within):
                await self.delete(key, uid, foreground=foreground, within=within)
            case Status(key, uid, status):
                await self.apply_status(key, uid, status)
            case Event(key, uid, level, reason, message):
                await self.event(key, uid, level, reason, message)
            case _:
                assert_never(write)

    async def _make(self, write: Create, made: dict[Key, str]) -> None:
        key = key_of_manifest(write.manifest)
        try:
            made[key] = (await self.create(write.manifest))["metadata"]["uid"]
        except (ApiError, Outdated) as error:
            if not write.else_warn:
                raise
            logger.warning(write.else_warn, extra={"object": str(key), "why": str(error)})

    async def _keep(self, write: Keep) -> None:
        key = key_of_manifest(write.manifest)
        content = json.dumps(write.manifest, sort_keys=True) if write.wanted else None
        done = (self.term, hash(content))
        if self._kept.get(key) == done:
            return
        await (self.apply(write.manifest) if write.wanted else self.remove(write.manifest))
        if len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
        self._kept[key] = done
