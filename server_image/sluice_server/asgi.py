"""ASGI types and helpers of the middleware."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class Disconnected(Exception):
    """The client left before its request was complete."""


class TooLarge(Exception):
    """The body is longer than the limit."""


async def read_body(receive: Receive, limit: int) -> bytes:
    """Read a request's whole body.

    Raises:
        Disconnected: the client left.
        TooLarge: the body has more than `limit` bytes.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise TooLarge
        if not message.get("more_body", False):
            return b"".join(parts)


def replay(body: bytes, receive: Receive) -> Receive:
    """A receive that returns this body, and then whatever comes next from the client, such as its disconnect."""
    pending = [body]

    async def again() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return again


def header(headers: Headers, name: bytes) -> bytes:
    """A header's value; empty where it is absent."""
    return next((value for key, value in headers if key.lower() == name), b"")


def with_length(headers: Headers, length: int) -> Headers:
    """These headers for a body of another length."""
    kept = [pair for pair in headers if pair[0].lower() not in (b"content-length", b"transfer-encoding")]
    return [*kept, (b"content-length", str(length).encode())]


async def reply(send: Send, status: int, answer: Any) -> None:
    """Send JSON."""
    body = json.dumps(answer, separators=(",", ":")).encode()
    headers = with_length([(b"content-type", b"application/json")], len(body))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def refuse(send: Send, status: int, kind: str, message: str, param: str | None = None) -> None:
    """Send an error in the form that OpenAI's clients read."""
    await reply(send, status, {"error": {"message": message, "type": kind, "param": param, "code": status}})
