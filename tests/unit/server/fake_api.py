"""The part of the API server that the agent uses: list and watch of our custom resources, on a real port."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from kubernetes.aio import client

from dev.cluster.ports import free_port

Body = dict[str, Any]
_KINDS = {"adapters": "Adapter", "inferenceengines": "InferenceEngine"}


class FakeAPI:
    """Objects by (plural, name), a growing resourceVersion, and a log of events that can be compacted."""

    def __init__(self) -> None:
        self.version = 100
        self.compacted = 0
        self.objects: dict[tuple[str, str], Body] = {}
        self.log: list[tuple[int, str, str, Body]] = []
        self.lists = self.watches = 0
        self.broken = False
        self._changed = asyncio.Condition()
        self._cut = asyncio.Event()

    async def apply(self, plural: str, name: str, **fields: Any) -> None:
        """Create or change an object; `generation` grows with `spec`."""
        old = self.objects.get((plural, name), {})
        metadata = old.get("metadata") or {
            "name": name,
            "namespace": "demo",
            "uid": f"uid-{name}-{self.version}",
            "creationTimestamp": f"2026-01-01T00:00:{len(self.objects):02}Z",
            "generation": 0,
        }
        grown = metadata["generation"] + (fields.get("spec") != old.get("spec"))
        self.version += 1
        metadata = {**metadata, "generation": grown, "resourceVersion": str(self.version)}
        body = {"apiVersion": "sluice.dev/v1alpha1", "kind": _KINDS[plural], **old, **fields, "metadata": metadata}
        self.objects[plural, name] = body
        await self._tell("MODIFIED" if old else "ADDED", plural, body)

    async def delete(self, plural: str, name: str) -> None:
        body = self.objects.pop((plural, name))
        self.version += 1
        await self._tell(
            "DELETED", plural, {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}}
        )

    async def cut_watches(self, *, compact: bool) -> None:
        """Break every watch; with `compact` none can go on from where it was."""
        if compact:
            self.compacted = self.version
            self.log.clear()
        self._cut.set()
        async with self._changed:
            self._changed.notify_all()
        await asyncio.sleep(0)
        self._cut = asyncio.Event()

    async def fail_watches(self) -> None:
        """Put an ERROR event into every watch, and leave the watches open."""
        self.version += 1
        status = {"kind": "Status", "code": 500, "reason": "InternalError", "message": "etcd is tired"}
        for plural in _KINDS:
            await self._tell("ERROR", plural, status)

    async def _tell(self, kind: str, plural: str, body: Body) -> None:
        self.log.append((self.version, kind, plural, body))
        async with self._changed:
            self._changed.notify_all()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self.broken:
            return web.json_response({"kind": "Status", "code": 500}, status=500)
        plural = request.match_info["plural"]
        only = request.query.get("fieldSelector", "").removeprefix("metadata.name=")
        if request.query.get("watch") in ("true", "True"):
            self.watches += 1
            return await self._watch(request, plural, only)
        self.lists += 1
        items = [body for (kind, name), body in self.objects.items() if kind == plural and only in ("", name)]
        return web.json_response({"metadata": {"resourceVersion": str(self.version)}, "items": items})

    async def _watch(self, request: web.Request, plural: str, only: str) -> web.StreamResponse:
        since, cut = int(request.query["resourceVersion"]), self._cut
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        await answer.prepare(request)
        if since < self.compacted:
            status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            await answer.write(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
            return answer
        while not cut.is_set():
            for version, kind, of, body in [event for event in self.log if event[0] > since]:
                since = version
                if of == plural and (kind == "ERROR" or only in ("", body["metadata"]["name"])):
                    line = json.dumps({"type": kind, "object": body}).encode() + b"\n"
                    await answer.write(line[:20])
                    await answer.write(line[20:])
            async with self._changed:
                if not cut.is_set() and not any(event[0] > since for event in self.log):
                    await self._changed.wait()
        return answer

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_get("/apis/sluice.dev/v1alpha1/namespaces/demo/{plural}", self.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            await self.cut_watches(compact=False)
            await runner.cleanup()


def api_client(address: str) -> client.CustomObjectsApi:
    """The official client, pointed at the fake."""
    return client.CustomObjectsApi(client.ApiClient(client.Configuration(host=address)))


class Operator:
    """The operator's end of the reports."""

    def __init__(self) -> None:
        self.reports: list[Body] = []
        self.tokens: list[str] = []
        self.status = 202
        self.arrived = asyncio.Event()

    async def handle(self, request: web.Request) -> web.Response:
        if self.status == 202:
            self.reports.append(await request.json())
            self.tokens.append(request.headers["Authorization"])
        self.arrived.set()
        return web.Response(status=self.status)

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_post("/v1/engine-reports", self.handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            await runner.cleanup()
