"""A local copy of the slot's InferenceEngine and of the namespace's Adapters: list, then watch, as client-go does."""

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

import aiohttp

from sluice_api.adapter import Adapter
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.meta import GROUP, VERSION
from sluice_server.agent.resources import Body, Unreadable, WantedAdapter, adapter_for

if TYPE_CHECKING:
    from kubernetes.aio.client import CustomObjectsApi

log = logging.getLogger(__name__)

_WATCH_SECONDS = 300
_LIST_SECONDS = 30
_SLACK_SECONDS = 30
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
_SHORT_SECONDS = 1.0
_MAX_LINE_BYTES = 4 * 2**20


class WatchEnded(Exception):
    """The watch can't be resumed from the last resourceVersion: list again."""


class Informer:
    """The objects of one kind in one namespace, by name, kept up to date.

    `synced` turns true with the first list. `on_change` is called after each list and each change. `only` names the
    one object to follow.
    """

    def __init__(
        self,
        api: "CustomObjectsApi",
        kind: type[InferenceEngine] | type[Adapter],
        namespace: str,
        on_change: Callable[[], None],
        only: str | None = None,
    ) -> None:
        self.synced = False
        self.objects: dict[str, Body] = {}
        self._api, self._on_change = api, on_change
        self._plural = kind.KIND.plural
        self._scope = {"group": GROUP, "version": VERSION, "namespace": namespace, "plural": self._plural}
        self._selector = {"field_selector": f"metadata.name={only}"} if only else {}

    async def run(self) -> None:
        """List and watch until cancelled, whatever the API server answers."""
        from kubernetes.aio.client.exceptions import ApiException

        pause = _FIRST_PAUSE
        while True:
            started = monotonic()
            try:
                version = await self._list()
                while True:
                    started = monotonic()
                    version = await self._watch(version)
            except (ApiException, aiohttp.ClientError, OSError, json.JSONDecodeError, WatchEnded) as error:
                log.warning("%s: %s; listing again", self._plural, _one_line(error))
            pause = _FIRST_PAUSE if monotonic() - started > _LONGEST_PAUSE else min(pause * 2, _LONGEST_PAUSE)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    async def _list(self) -> str:
        found: Body = await self._api.list_namespaced_custom_object(
            **self._scope, **self._selector, _request_timeout=_LIST_SECONDS
        )
        self.objects = {item["metadata"]["name"]: item for item in found["items"]}
        self.synced = True
        self._on_change()
        return str(found["metadata"]["resourceVersion"])

    async def _watch(self, version: str) -> str:
        """Apply changes until the API server ends the watch; return the resourceVersion to resume from."""
        started = monotonic()
        async for event in self._events(version):
            body = event["object"]
            match event["type"]:
                case "ADDED" | "MODIFIED":
                    self.objects[body["metadata"]["name"]] = body
                case "DELETED":
                    self.objects.pop(body["metadata"]["name"], None)
                case "BOOKMARK":
                    version = body["metadata"]["resourceVersion"]
                    continue
                case _:  # ERROR: a Status, such as 410 Gone
                    raise WatchEnded(f"{body.get('code')} {body.get('reason')}: {body.get('message')}")
            version = body["metadata"]["resourceVersion"]
            self._on_change()
        if monotonic() - started < _SHORT_SECONDS:
            raise WatchEnded("the API server ended the watch at once")
        return version

    async def _events(self, version: str) -> AsyncIterator[dict[str, Any]]:
        answer = await self._api.list_namespaced_custom_object_without_preload_content(
            **self._scope,
            **self._selector,
            watch=True,
            allow_watch_bookmarks=True,
            resource_version=version,
            timeout_seconds=_WATCH_SECONDS,
            _request_timeout=_WATCH_SECONDS + _SLACK_SECONDS,
        )
        async with answer:
            if answer.status != 200:
                raise WatchEnded(f"{answer.status} {answer.reason}")
            rest = b""  # the start of a line whose end has not come yet
            async for chunk in answer.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > _MAX_LINE_BYTES:
                    raise WatchEnded("an event has no end")
                for line in filter(None, lines):
                    yield json.loads(line)


def adapters_of(informer: Informer, engine: str) -> tuple[WantedAdapter, ...]:
    """The adapters of one engine. One that can't be read is logged and left out."""
    found = []
    for body in informer.objects.values():
        try:
            adapter = adapter_for(engine, body)
        except Unreadable as error:
            log.warning("adapter %s: %s", body.get("metadata", {}).get("name"), error)
            continue
        if adapter:
            found.append(adapter)
    return tuple(found)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or repr(error)
