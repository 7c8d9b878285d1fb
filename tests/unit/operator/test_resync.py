"""Full lists: each kind when it is wanted, and none held up by another that cannot be listed."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from sluice_operator.cluster.errors import ApiError
from sluice_operator.cluster.kinds import KINDS
from sluice_operator.handlers import resync as module
from sluice_operator.handlers.resync import Resync
from sluice_operator.observe.parse import WATCHED
from sluice_operator.observe.store import Store

PLURALS = [KINDS[kind].plural for kind in WATCHED]


class ListServer:
    """An API server of empty lists, which refuses some."""

    def __init__(self, *refused: str) -> None:
        self.refused = refused
        self.listed = Counter[str]()
        self.version = 0

    async def request(self, _method: str, path: str, **_: Any) -> dict[str, Any]:
        await asyncio.sleep(0)
        plural = path.rpartition("/")[2]
        self.listed[plural] += 1
        if plural in self.refused:
            raise ApiError(403, "Forbidden", "no")
        self.version += 1
        return {"items": [], "metadata": {"resourceVersion": str(self.version)}}


async def rounds(resync: Resync) -> None:
    """Let it go on until nothing more is to be done at once."""
    task = asyncio.create_task(resync.run())
    for _ in range(400):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_resync_lists_wanted_kinds_and_is_primed_after_all() -> None:
    server = ListServer()
    resync = Resync(server, Store(), 3600)  # type: ignore[arg-type]
    for plural in PLURALS[:-1]:
        resync.want(plural)
    await rounds(resync)
    assert (server.listed, resync.is_primed) == (Counter(PLURALS[:-1]), False)
    resync.want(PLURALS[-1])
    resync.want("somebody-elses")
    await rounds(resync)
    assert (server.listed, resync.is_primed) == (Counter(PLURALS), True)


async def test_resync_of_a_kind_that_fails_delays_no_other_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_AFTER_FAILURE", 0)
    server = ListServer("nodes")
    resync = Resync(server, Store(), 3600)  # type: ignore[arg-type]
    for plural in PLURALS:
        resync.want(plural)
    await rounds(resync)
    assert set(server.listed) == set(PLURALS)
    assert server.listed["nodes"] > 3
    assert not resync.is_primed


async def test_resync_lists_every_kind_when_due() -> None:
    server = ListServer()
    resync = Resync(server, Store(), 0)  # type: ignore[arg-type]
    await rounds(resync)
    assert set(server.listed) == {*PLURALS, "kubernetes"}  # and where the API server is
