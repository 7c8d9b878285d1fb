"""A proxy in front of the API server, with a list of rules about what goes wrong on the way.

Plain HTTP in front, the administrator's certificate behind. Every request goes through all rules, the first rule
first; so does every event of a watch.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from dev.cluster.control_plane import ADMIN, LOOPBACK, ControlPlane
from dev.faults.asked import Asked
from dev.faults.rules import Answer, Event, GoOn, Reset, Rule

HOP_BY_HOP = {"Transfer-Encoding", "Content-Length", "Connection", "Host", "Content-Encoding"}
LONGEST_EVENT = 2**22


@dataclass
class FaultProxy:
    """Serves one or several clients; their rules may come and go while it runs."""

    server: str
    kubeconfig: Path
    rules: list[Rule]
    _session: aiohttp.ClientSession
    _watches: dict[str, list[asyncio.Queue[Event | None]]] = field(default_factory=dict)

    @classmethod
    @asynccontextmanager
    async def between(cls, plane: ControlPlane, *rules: Rule) -> AsyncIterator["FaultProxy"]:
        """Serve until the block ends."""
        trust = ssl.create_default_context(cafile=str(plane.authority.pair.certificate))
        admin = plane.authority.named(ADMIN)
        trust.load_cert_chain(admin.certificate, admin.key)
        behind = aiohttp.TCPConnector(ssl=trust, limit=0)
        patience = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=behind, timeout=patience, read_bufsize=LONGEST_EVENT) as session:
            app = web.Application(client_max_size=2**26)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            proxy = cls(plane.server, Path(), [*rules], session)
            app.router.add_route("*", "/{path:.*}", proxy._answer)
            await runner.setup()
            await web.TCPSite(runner, LOOPBACK, 0).start()
            port = runner.addresses[0][1]
            proxy.kubeconfig = plane.state / f"proxy-{port}.kubeconfig"
            proxy.kubeconfig.write_text(json.dumps(_kubeconfig(f"http://{LOOPBACK}:{port}")))
            try:
                yield proxy
            finally:
                await runner.cleanup()

    def watches(self, plural: str) -> int:
        """Open watches of a kind."""
        return len(self._watches.get(plural, []))

    def send(self, plural: str, event: Event) -> int:
        """Put an event of ours into every open watch of a kind; how many there are."""
        for watch in self._watches.get(plural, []):
            watch.put_nowait(event)
        return self.watches(plural)

    def cut(self, plural: str) -> None:
        """Break every open watch of a kind."""
        for watch in self._watches.get(plural, []):
            watch.put_nowait(None)

    async def _answer(self, request: web.Request) -> Answer:
        asked = Asked.of(request.method, request.path, dict(request.query))
        body = await request.read()  # while the client is still there
        go_on: GoOn = partial(self._pass_on, request, body)
        for rule in reversed(self.rules):
            go_on = partial(_through, rule, go_on)
        try:
            return await go_on(asked)
        except (Reset, aiohttp.ClientConnectionError):  # or the API server's own end of the connection broke
            if request.transport is not None:
                request.transport.abort()
            return web.Response()

    async def _pass_on(self, request: web.Request, body: bytes, asked: Asked) -> Answer:
        headers = {name: value for name, value in request.headers.items() if name not in HOP_BY_HOP}
        where = f"{self.server}{asked.path}"
        async with self._session.request(
            asked.method, where, params=asked.query, headers=headers, data=body or None
        ) as answer:
            passed = {name: value for name, value in answer.headers.items() if name not in HOP_BY_HOP}
            if asked.verb != "watch" or answer.status != HTTPStatus.OK:
                return web.Response(status=answer.status, headers=passed, body=await answer.read())
            return await self._stream(request, asked, answer, passed)

    async def _stream(
        self, request: web.Request, asked: Asked, answer: aiohttp.ClientResponse, headers: dict[str, str]
    ) -> Answer:
        """Pass a watch's lines on, with ours between them."""
        lines: asyncio.Queue[Event | None] = asyncio.Queue()
        self._watches.setdefault(asked.plural, []).append(lines)
        response = web.StreamResponse(status=200, headers=headers)
        await response.prepare(request)

        async def read() -> None:
            with suppress(Reset, aiohttp.ClientError):
                async for line in answer.content:
                    event = json.loads(line)
                    if (left := await self._event(asked, event)) is not None:
                        lines.put_nowait(left)
            lines.put_nowait(None)

        reading = asyncio.create_task(read())
        try:
            while (event := await lines.get()) is not None:
                await response.write(json.dumps(event).encode() + b"\n")
        finally:
            reading.cancel()
            self._watches[asked.plural].remove(lines)
        return response

    async def _event(self, asked: Asked, event: Event) -> Event | None:
        left: Event | None = event
        for rule in self.rules:
            if left is not None:
                left = await rule.event(asked, left)
        return left


async def _through(rule: Rule, go_on: GoOn, asked: Asked) -> Answer:
    return await rule.request(asked, go_on)


def _kubeconfig(server: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "proxy", "cluster": {"server": server}}],
        "users": [{"name": "nobody", "user": {}}],
        "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "nobody"}}],
        "current-context": "proxy",
    }
