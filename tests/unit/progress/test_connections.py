"""Connections that last are ended."""

import asyncio
import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web

from sluice_operator.certificates.authority import renewed
from sluice_operator.progress import connections
from sluice_operator.progress.connections import LONGEST_SECONDS, Connections, runner_of
from tests.unit.certificates.serving import context_of


class Peers:
    """Open connections to a server, none of which ever sends a whole request."""

    def __init__(self, runner: web.AppRunner) -> None:
        self.runner = runner
        self.readers: list[asyncio.StreamReader] = []

    async def come(self, number: int) -> None:
        here = len(self.open())
        for _ in range(number):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.runner.addresses[0][1])
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\n")
            self.readers.append(reader)
        async with asyncio.timeout(10):
            while len(self.open()) < here + number:  # noqa: ASYNC110  aiohttp tells nobody of a connection
                await asyncio.sleep(0)

    def open(self) -> list[web.RequestHandler]:
        assert self.runner.server is not None
        return self.runner.server.connections

    async def ended(self, *places: int) -> None:
        """Until these, in the order in which they came, have been ended."""
        for place in places:
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await asyncio.wait_for(self.readers[place].readexactly(1), 10)


async def test_a_connection_that_lasts_or_is_one_too_many_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(connections, "MOST", 3)
    runner = runner_of(web.Application())
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        peers, kept = Peers(runner), Connections(lambda: now)
        await peers.come(2)
        kept.end_old(peers.open())
        now = LONGEST_SECONDS / 2
        await peers.come(3)
        kept.end_old(peers.open())
        await peers.ended(0, 1)
        assert len(peers.open()) == 3, "the newest stay"
        now = LONGEST_SECONDS * 1.5 + 1
        await peers.come(1)
        kept.end_old(peers.open())
        await peers.ended(2, 3, 4)
        assert len(peers.open()) == 1
    finally:
        await runner.cleanup()


async def test_connection_without_tls_handshake_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Until then it is none of the server's connections: nobody counted it, and asyncio kept it for a minute."""
    monkeypatch.setattr(connections, "HANDSHAKE_SECONDS", 0.2)
    tls = context_of(renewed(None, ("127.0.0.1",), datetime.now(UTC)), tmp_path)
    async with connections.answering(web.Application(), 0, tls) as listening:
        addresses = [found.getsockname() for found in listening.sockets if found.family == socket.AF_INET]
        reader, _ = await asyncio.open_connection("127.0.0.1", addresses[0][1])
        assert await asyncio.wait_for(reader.read(1), 10) == b""
