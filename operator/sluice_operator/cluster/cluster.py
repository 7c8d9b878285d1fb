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
"""Sequences of writes that are under way beside each other: more would only wait at the API server, in front of other
clients' requests."""
_MOST_KEPT = 20_000
"""Objects of which is remembered what was made. When there are more, all are written once more."""

Failure = Refused | Exception


class Cluster(Writer):
    """Interprets writes.

    All raise NotLeading when this process does not surely hold the lease, Outdated when the object meant is gone or
    has changed (the store knows by then), and ApiError when the API server does not answer.
    """

    def __init__(self, api: Api, store: Store, leadership: Leadership, reporter: str) -> None:
        """`reporter` is this process's name in events."""
        super().__init__(api, store, leadership, reporter)
        self._kept: dict[Key, tuple[int, int]] = {}
        """In which term what was last made of objects that nobody watches."""

    async def do(self, writes: Sequence[Write]) -> Refused | None:
        """Do them in their order, up to the first that the API server refuses, which is returned.

        If one fails otherwise, what only tells people is done all the same before the failure is raised.
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
        """Do sequences of which none needs another, some at a time; which have failed, and how.

        None is left to run behind the caller's back: the next decision begins from what all of them have done.

        Raises:
            NotLeading: one found that this process may not write any more, so the others' failures are nobody's
                business.
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
        """One of them. `made` has the uids of what was created before."""
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
