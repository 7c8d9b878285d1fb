"""Changes to responses: the public name put back, the list of models translated, connections closed.

Each is an ASGI `send` around the server's own.
"""

import json
from collections.abc import Callable
from typing import Any

from sluice_server.asgi import Headers, Message, Send, header, with_length
from sluice_server.rewrite import ResponseNames


def close_when_draining(send: Send, draining: Callable[[], bool]) -> Send:
    """A send that adds `Connection: close` while the slot drains, so that clients connect to another replica next."""

    async def sender(message: Message) -> None:
        if message["type"] == "http.response.start" and draining():
            kept = [pair for pair in message.get("headers", []) if pair[0].lower() != b"connection"]
            message = {**message, "headers": [*kept, (b"connection", b"close")]}
        await send(message)

    return sender


def rename_response(send: Send, names: ResponseNames) -> Send:
    """A send that replaces the name inside vLLM by the public name."""
    return _Renamed(send, names)


class _Renamed:
    """Renames in event streams as they arrive, and in JSON when it is complete."""

    def __init__(self, send: Send, names: ResponseNames) -> None:
        self._send, self._names = send, names
        self._rewrite: Callable[[bytes, bool], bytes] | None = None
        self._whole: Buffered | None = None

    async def __call__(self, message: Message) -> None:
        """Take the next message of the response."""
        if message["type"] == "http.response.start":
            await self._start(message)
        elif self._whole:
            await self._whole(message)
        elif self._rewrite:
            more = message.get("more_body", False)
            body = self._rewrite(message.get("body", b""), not more)
            if body or not more:
                await self._send({**message, "body": body})
        else:
            await self._send(message)

    async def _start(self, message: Message) -> None:
        headers: Headers = [(key, self._names.error(value)) for key, value in message.get("headers", [])]
        message = {**message, "headers": headers}
        kind = header(headers, b"content-type")
        if kind.startswith(b"text/event-stream"):
            self._rewrite = self._names.stream
        elif kind.startswith(b"application/json"):
            failed = message["status"] >= 400
            self._whole = Buffered(self._send, self._names.error if failed else self._names.json)
            await self._whole(message)
            return
        await self._send(message)


class Buffered:
    """A send that keeps a response until it is complete, and changes its body."""

    def __init__(self, send: Send, change: Callable[[bytes], bytes]) -> None:
        self._send, self._change = send, change
        self._start: Message = {}
        self._parts: list[bytes] = []

    async def __call__(self, message: Message) -> None:
        """Take the next message of the response."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._parts.append(message.get("body", b""))
        if message.get("more_body", False):
            return
        body = self._change(b"".join(self._parts))
        await self._send({**self._start, "headers": with_length(self._start.get("headers", []), len(body))})
        await self._send({"type": "http.response.body", "body": body})


def json_change(change: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    """Turn a change of a JSON value into a change of its bytes."""
    return lambda body: json.dumps(change(json.loads(body)), separators=(",", ":")).encode()
