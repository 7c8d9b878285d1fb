"""A proxy before the API server that loses, breaks and injects watch events as a test says (after Sieve)."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from dev.cluster.control_plane import ADMIN, ControlPlane
from tests.integration.progress_scene import free_port

Event = dict[str, Any]
HOP_BY_HOP = {"Transfer-Encoding", "Content-Length", "Connection", "Host", "Content-Encoding"}


@dataclass
class FaultProxy:
    """Plain HTTP in front, the administrator's certificate behind."""

    server: str
    trust: ssl.SSLContext
    port: int
    kubeconfig: Path
    loses: Callable[[str, Event], bool] = lambda _plural, _event: False
    """Which watch events never arrive."""
    refuses: Callable[[str, str], int] = lambda _method, _path: 0
    """Which requests are answered with a status of their own; 0 for none."""
    _watches: dict[str, list[asyncio.Queue[Event | None]]] = field(default_factory=dict)

    @classmethod
    @asynccontextmanager
    async def between(cls, plane: ControlPlane) -> AsyncIterator["FaultProxy"]:
        """Serve until the block ends."""
        trust = ssl.create_default_context(cafile=str(plane.authority.pair.certificate))
        admin = plane.authority.named(ADMIN)
        trust.load_cert_chain(admin.certificate, admin.key)
        port = free_port()
        kubeconfig = plane.state / f"proxy-{port}.kubeconfig"
        kubeconfig.write_text(json.dumps(_kubeconfig(f"http://127.0.0.1:{port}")))
        proxy = cls(plane.server, trust, port, kubeconfig)
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", proxy._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
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
        return len(self._watches.get(plural, []))

    def cut(self, plural: str) -> None:
        """Break every open watch of a kind."""
        for watch in self._watches.get(plural, []):
            watch.put_nowait(None)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        status = self.refuses(request.method, request.path_qs)
        if status:
            return web.json_response(
                {"kind": "Status", "code": status, "reason": "Fault", "message": "x"}, status=status
            )
        headers = {name: value for name, value in request.headers.items() if name not in HOP_BY_HOP}
        timeout = aiohttp.ClientTimeout(total=None)
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self.trust), auto_decompress=True) as session,
            session.request(
                request.method,
                self.server + request.path_qs,
                headers=headers,
                data=await request.read() or None,
                timeout=timeout,
            ) as answer,
        ):
            passed = {name: value for name, value in answer.headers.items() if name not in HOP_BY_HOP}
            if request.query.get("watch") not in ("true", "1") or answer.status != 200:
                return web.Response(status=answer.status, headers=passed, body=await answer.read())
            return await self._stream(request, answer, passed)

    async def _stream(
        self, request: web.Request, answer: aiohttp.ClientResponse, headers: dict[str, str]
    ) -> web.StreamResponse:
        """Pass a watch's lines on, with ours between them."""
        plural = request.path.rpartition("/")[2]
        ours: asyncio.Queue[Event | None] = asyncio.Queue()
        self._watches.setdefault(plural, []).append(ours)
        response = web.StreamResponse(status=200, headers=headers)
        await response.prepare(request)

        async def pass_on() -> None:
            async for line in answer.content:
                event = json.loads(line)
                if not self.loses(plural, event):
                    ours.put_nowait(event)
            ours.put_nowait(None)

        passing = asyncio.create_task(pass_on())
        try:
            while (event := await ours.get()) is not None:
                await response.write(json.dumps(event).encode() + b"\n")
        finally:
            passing.cancel()
            self._watches[plural].remove(ours)
        return response


def _kubeconfig(server: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "proxy", "cluster": {"server": server}}],
        "users": [{"name": "nobody", "user": {}}],
        "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "nobody"}}],
        "current-context": "proxy",
    }
