"""Connections of the endpoint: a post is short, so a connection that lasts is none, and is ended."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing

from aiohttp import web

from sluice_operator.clock import passing

LONGEST_SECONDS = 20
"""From the first byte to the answer's last: a poster itself waits for 5 s at most."""
MOST = 1000
"""More than are open while ten thousand pods post; above it the oldest go."""
LOOK_EVERY_SECONDS = 1.0
HANDSHAKE_SECONDS = 5.0
"""For TLS to be agreed on. Before that a connection is nobody's, so that no look finds it; asyncio would give it 60."""


def runner_of(app: web.Application) -> web.AppRunner:
    """Serves an app that takes bodies as they are: a packed one is refused, and never unpacked."""
    return web.AppRunner(app, access_log=None, shutdown_timeout=5, auto_decompress=False)


@asynccontextmanager
async def answering(app: web.Application, port: int, tls: ssl.SSLContext | None) -> AsyncIterator[asyncio.Server]:
    """Have an app answer on a port until the block ends, by TLS if there is a context; what lasts is ended."""
    runner = runner_of(app)
    await runner.setup()
    try:
        server = runner.server
        if server is None:
            raise RuntimeError("a runner that is set up has no server")
        async with asyncio.TaskGroup() as group:
            with closing(await _listen(server, port, tls)) as listening:
                tidying = group.create_task(_end_old(server), name="old connections")
                yield listening
                tidying.cancel()
    finally:
        await runner.cleanup()


async def _listen(server: web.Server, port: int, tls: ssl.SSLContext | None) -> asyncio.Server:
    """aiohttp's own sites have no word for how long a handshake may take."""
    patience = HANDSHAKE_SECONDS if tls else None
    loop = asyncio.get_running_loop()
    return await loop.create_server(server, None, port, ssl=tls, ssl_handshake_timeout=patience, backlog=128)


class Connections:
    """Since when each connection of a server is open."""

    def __init__(self, clock: Callable[[], float] = passing) -> None:
        """`clock` gives seconds."""
        self._clock = clock
        self._since: dict[web.RequestHandler, float] = {}

    def end_old(self, here: list[web.RequestHandler]) -> None:
        """End those of the open ones, the oldest first, that are too old or too many."""
        now = self._clock()
        self._since = {connection: self._since.get(connection, now) for connection in here}
        too_many = max(0, len(here) - MOST)
        for place, (connection, since) in enumerate(self._since.items()):
            if place < too_many or now - since > LONGEST_SECONDS:
                transport = connection.transport
                connection.force_close()
                if transport is not None:
                    transport.abort()  # or it would wait for a peer that reads nothing


async def _end_old(server: web.Server) -> None:
    """Look after the connections of a server, until cancelled."""
    connections = Connections()
    while True:
        await asyncio.sleep(LOOK_EVERY_SECONDS)
        connections.end_old(server.connections)
