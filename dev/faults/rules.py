"""What may go wrong between a client and the API server. A rule disturbs what it names, and lets all else pass."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from aiohttp import web

from dev.faults.asked import Asked

Event = dict[str, Any]
Answer = web.StreamResponse
GoOn = Callable[[Asked], Awaitable[Answer]]
"""What lies behind a rule: the next rule, and after the last the API server."""
Which = Callable[[Asked], bool]
Strike = Callable[[], Awaitable[None]]


class Reset(Exception):
    """The connection breaks."""


class Rule:
    """Lets everything pass."""

    async def request(self, asked: Asked, go_on: GoOn) -> Answer:
        """Answer a request.

        Raises:
            Reset: no answer comes.
        """
        return await go_on(asked)

    async def event(self, asked: Asked, event: Event) -> Event | None:
        """What becomes of a watch's event; None: it is lost.

        Raises:
            Reset: the watch breaks before it.
        """
        del asked
        return event


@dataclass
class Nth:
    """Counts what comes, and says once: this is the one."""

    which: Which
    number: int = 1
    seen: int = 0

    def is_it(self, asked: Asked) -> bool:
        """Whether this is the request that is meant."""
        if not self.which(asked):
            return False
        self.seen += 1
        return self.seen == self.number


@dataclass
class Refuse(Rule):
    """Answers in the API server's place, for as long as the rule is there."""

    which: Which
    status: int
    refused: int = 0
    """How often it has."""

    async def request(self, asked: Asked, go_on: GoOn) -> Answer:
        """A metav1.Status, as an API server says it."""
        if not self.which(asked):
            return await go_on(asked)
        self.refused += 1
        return refusal(self.status)


def refusal(status: int) -> web.Response:
    """An answer without having asked the API server."""
    reasons = {409: "Conflict", 410: "Expired", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}
    body = {
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "code": status,
        "reason": reasons.get(status, "Fault"),
        "message": f"injected: {HTTPStatus(status).phrase}",
    }
    headers = {"Retry-After": "1"} if status == HTTPStatus.TOO_MANY_REQUESTS else None
    return web.json_response(body, status=status, headers=headers)


def error_event(status: int) -> Event:
    """What a watch says before it ends."""
    return {
        "type": "ERROR",
        "object": {"kind": "Status", "status": "Failure", "code": status, "reason": "Fault", "message": "injected"},
    }


@dataclass
class At(Rule):
    """Something happens at one request: before it goes further, or after it has had its answer."""

    one: Nth
    strike: Strike
    after: bool = False
    lost: bool = False
    """Whether the client hears nothing of it any more; a lost request that was struck before goes no further."""
    answer: Answer | None = None
    """What the client hears in the API server's place."""
    struck: asyncio.Event = field(default_factory=asyncio.Event)

    async def request(self, asked: Asked, go_on: GoOn) -> Answer:
        """Strike, and break the connection if that is asked for."""
        if not self.one.is_it(asked):
            return await go_on(asked)
        answer = await go_on(asked) if self.after else self.answer
        self.struck.set()
        await self.strike()
        if self.lost:
            raise Reset
        return answer or await go_on(asked)


@dataclass
class Silence(Rule):
    """One request never gets an answer; it may have taken effect all the same."""

    one: Nth
    after: bool
    struck: asyncio.Event = field(default_factory=asyncio.Event)

    async def request(self, asked: Asked, go_on: GoOn) -> Answer:
        """Until the client loses its patience."""
        if not self.one.is_it(asked):
            return await go_on(asked)
        if self.after:
            await go_on(asked)
        self.struck.set()
        await asyncio.Event().wait()
        raise AssertionError("nobody sets this event")


@dataclass
class Hold(Rule):
    """The first request that `which` names goes no further until it is let go; all others pass."""

    which: Which = lambda _asked: False
    held: asyncio.Event = field(default_factory=asyncio.Event)
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    """The held request has had its answer from the API server."""
    _let_go: asyncio.Event = field(default_factory=asyncio.Event)

    async def at(self, within: float = 30) -> None:
        """Wait until a request is held."""
        async with asyncio.timeout(within):
            await self.held.wait()

    async def let_go(self) -> None:
        """Let it reach the API server, whether or not anybody waits for its answer."""
        self._let_go.set()
        async with asyncio.timeout(10):
            await self.answered.wait()

    async def request(self, asked: Asked, go_on: GoOn) -> Answer:
        """Wait, if this is the one."""
        if self.held.is_set() or not self.which(asked):
            return await go_on(asked)
        self.held.set()
        await self._let_go.wait()
        answer = await go_on(asked)
        self.answered.set()
        return answer


@dataclass
class Away(Rule):
    """The API server can't be reached, for as long as the rule is there: no request is answered, and watches end."""

    async def request(self, asked: Asked, go_on: GoOn) -> Answer:
        """No connection."""
        del asked, go_on
        raise Reset

    async def event(self, asked: Asked, event: Event) -> Event | None:
        """The watch that would bring it ends."""
        del asked, event
        raise Reset


@dataclass
class Slow(Rule):
    """Every answer but those of watches comes late."""

    seconds: float

    async def request(self, asked: Asked, go_on: GoOn) -> Answer:
        """Wait first."""
        if asked.verb != "watch":
            await asyncio.sleep(self.seconds)
        return await go_on(asked)


@dataclass
class StaleList(Rule):
    """The first list that is asked for from a moment on shows everything as it was at an older moment.

    The API server itself says how it was: it is asked for that resourceVersion exactly.
    """

    which: Which
    version: str = ""
    """The older moment; empty until the lie is to begin."""
    struck: asyncio.Event = field(default_factory=asyncio.Event)

    async def request(self, asked: Asked, go_on: GoOn) -> Answer:
        """Ask for the past."""
        if not self.version or self.struck.is_set() or asked.verb != "list" or not self.which(asked):
            return await go_on(asked)
        self.struck.set()
        return await go_on(asked.with_query(resourceVersion=self.version, resourceVersionMatch="Exact"))


@dataclass
class AtEvent(Rule):
    """Something becomes of the nth event that a kind's watches bring."""

    which: Callable[[Asked, Event], bool]
    number: int
    becomes: Callable[[Event], Awaitable[Event | None]]
    seen: int = 0
    struck: asyncio.Event = field(default_factory=asyncio.Event)

    async def event(self, asked: Asked, event: Event) -> Event | None:
        """Count, and disturb the one."""
        if event["type"] in ("BOOKMARK", "ERROR") or not self.which(asked, event):
            return event
        self.seen += 1
        if self.seen != self.number:
            return event
        self.struck.set()
        return await self.becomes(event)


@dataclass
class Lose(Rule):
    """Watch events that never arrive."""

    which: Callable[[Event], bool]

    async def event(self, asked: Asked, event: Event) -> Event | None:
        """Nothing, if so."""
        del asked
        return None if self.which(event) else event
