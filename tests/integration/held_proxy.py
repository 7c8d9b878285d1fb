"""A proxy that holds back one write of an operator, so that a test can stop the operator at exactly that moment."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from dev.cluster.control_plane import ControlPlane
from tests.integration.fault_proxy import FaultProxy


@dataclass
class HeldProxy(FaultProxy):
    """The first request that `holds` names goes no further until it is let go; all others pass."""

    holds: Callable[[str, str], bool] = lambda _method, _path: False
    held: asyncio.Event = field(default_factory=asyncio.Event)
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    """The held request has had its answer from the API server."""
    _let_go: asyncio.Event = field(default_factory=asyncio.Event)

    async def at(self, within: float = 30) -> None:
        """Wait until a write is held."""
        async with asyncio.timeout(within):
            await self.held.wait()

    async def let_go(self) -> None:
        """Let the held write reach the API server, whether or not anybody waits for its answer."""
        self._let_go.set()
        async with asyncio.timeout(10):
            await self.answered.wait()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self.held.is_set() or not self.holds(request.method, request.path_qs):
            return await super()._answer(request)
        self.held.set()
        await request.read()  # while the operator is still there
        await self._let_go.wait()
        answer = await super()._answer(request)
        self.answered.set()
        return answer


@asynccontextmanager
async def held_proxy(plane: ControlPlane) -> AsyncIterator[HeldProxy]:
    """One that lets everything pass until a test says what to hold."""
    async with HeldProxy.between(plane) as proxy:
        assert isinstance(proxy, HeldProxy)
        yield proxy
