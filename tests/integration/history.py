"""Every state that a namespace's objects went through, in the order in which the API server wrote them.

A watch brings each version of an object once, and resourceVersions are etcd's revisions: comparable over all kinds. So
what came before what is read off here, whatever a test's own speed.
"""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeVar

import aiohttp

from dev.cluster.control_plane import ADMIN, ControlPlane

Body = dict[str, Any]
Answer = TypeVar("Answer")

_SUMMARY_LINES = 60
SLUICE = "/apis/sluice.dev/v1alpha1"
WATCHED = {
    "pods": "/api/v1",
    "jobs": "/apis/batch/v1",
    "deployments": "/apis/apps/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
    "finetunejobs": SLUICE,
    "inferenceengines": SLUICE,
    "adapters": SLUICE,
}


@dataclass(frozen=True)
class Version:
    """One state of one object, or its end."""

    revision: int
    plural: str
    gone: bool
    body: Body
    at: float
    """When the watch brought it, by time.monotonic()."""

    @property
    def name(self) -> str:
        """The object's name."""
        return str(self.body["metadata"]["name"])


@dataclass
class History:
    """All versions since the recording began."""

    versions: list[Version] = field(default_factory=list)
    now: dict[str, dict[str, Body]] = field(default_factory=lambda: {plural: {} for plural in WATCHED})
    """What is there, by plural and name."""
    listeners: list[Callable[[Version], None]] = field(default_factory=list)
    patience: float = 60
    """Seconds after which what a test waits for does not come any more."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _watches: list[asyncio.Task[None]] = field(default_factory=list)

    @classmethod
    @asynccontextmanager
    async def of(cls, plane: ControlPlane, namespace: str) -> AsyncIterator["History"]:
        """Record one namespace until the block ends."""
        trust = ssl.create_default_context(cafile=str(plane.authority.pair.certificate))
        admin = plane.authority.named(ADMIN)
        trust.load_cert_chain(admin.certificate, admin.key)
        history = cls()
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(ssl=trust)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=2**22) as session:
            for plural, group in WATCHED.items():
                watch = history._watch(session, plural, f"{plane.server}{group}/namespaces/{namespace}")
                history._watches.append(task := asyncio.create_task(watch))
                task.add_done_callback(lambda _: history._changed.set())
            try:
                yield history
            finally:
                for task in history._watches:
                    task.cancel()
                await asyncio.wait(history._watches)

    def ordered(self, plural: str = "", name: str = "") -> list[Version]:
        """The versions of one kind, or of one object, or of all, oldest first."""
        found = (v for v in self.versions if plural in ("", v.plural) and name in ("", v.name))
        return sorted(found, key=lambda version: version.revision)

    async def until(self, found: Callable[[], Answer | None], what: str, within: float | None = None) -> Answer:
        """What `found` answers, as soon as that is not empty; it is asked after each change."""
        within = self.patience if within is None else within
        try:
            async with asyncio.timeout(within):
                while True:
                    self._changed.clear()
                    if answer := found():
                        return answer
                    for watch in self._watches:
                        if watch.done():
                            watch.result()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"not within {within} s: {what}\n{self.summary()}") from None

    async def never(self, found: Callable[[], object], what: str, seconds: float) -> None:
        """Nothing of the kind for so long."""
        time_is_up = asyncio.timeout(seconds)
        try:
            async with time_is_up:
                while True:
                    self._changed.clear()
                    assert not (answer := found()), f"{what}: {answer}\n{self.summary()}"
                    await self._changed.wait()
        except TimeoutError:  # as it should be, unless it is one of the question's own
            if not time_is_up.expired():
                raise

    def summary(self) -> str:
        """What is there now, for a person whose test has failed."""
        lines = []
        for plural, objects in self.now.items():
            for name, body in objects.items():
                status = body.get("status") or {}
                conditions = [
                    f"{c['type']}={c['status']} {c.get('reason', '')} {c.get('message', '')}".strip()
                    for c in status.get("conditions") or ()
                    if plural != "finetunejobs" or c["status"] == "False"
                ]
                size = (body.get("spec") or {}).get("replicas", "")
                lines.append(f"{plural}/{name} {size} {status.get('phase', '')} {'; '.join(conditions)}")
        return "\n".join(lines[-_SUMMARY_LINES:])

    async def _watch(self, session: aiohttp.ClientSession, plural: str, place: str) -> None:
        """From an empty namespace on: a watch without a version begins with what is there.

        The API server ends a watch after half an hour or more, or when its reader is too slow. The next one goes on
        from the last version, and nothing is missed: if that is too long ago, the answer is an error.
        """
        asked = {"watch": "true", "allowWatchBookmarks": "true"}
        while True:
            async with session.get(f"{place}/{plural}", params=asked) as stream:
                if stream.status == HTTPStatus.TOO_MANY_REQUESTS:  # a new resource's cache fills
                    await asyncio.sleep(0.2)
                    continue
                assert stream.status == HTTPStatus.OK, await stream.text()
                async for line in stream.content:
                    event = json.loads(line)
                    assert event["type"] != "ERROR", f"the watch of {plural} has ended: {event['object']}"
                    body = event["object"]
                    asked["resourceVersion"] = body["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        revision = int(asked["resourceVersion"])
                        self._take(Version(revision, plural, event["type"] == "DELETED", body, time.monotonic()))

    def _take(self, version: Version) -> None:
        self.versions.append(version)
        if version.gone:
            self.now[version.plural].pop(version.name, None)
        else:
            self.now[version.plural][version.name] = version.body
        for listener in self.listeners:
            listener(version)
        self._changed.set()
