"""Structured log lines, one JSON object each, on stdout.

Each has run_id, timestamp, agent, level (INFO, WARNING, or METRIC for a step's figures), event and message: the
message is for a person, and the event, of which there are few, for programs. What else there is depends on the event.

No line is waited for: a state that is to be saved must not wait for a reader who does not read, such as a pager. Lines
that nobody takes are kept until somebody does, the newest of them.
"""

import json
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

_MAX_WAITING_LINES = 10_000
"""Beyond that the oldest are dropped, and counted."""

_ALWAYS: dict[str, object] = {}


def always(**fields: object) -> None:
    """Add these fields to each line from now on."""
    _ALWAYS.update(fields)


def info(event: str, **fields: object) -> None:
    """Log something that nobody needs to act on."""
    _write("INFO", event, fields)


def metric(event: str, message: str, **figures: object) -> None:
    """Log figures of a step."""
    _write("METRIC", event, {"message": message, **figures})


def warning(event: str, **fields: object) -> None:
    """Log something that a person may want to change."""
    _write("WARNING", event, fields)


def _write(level: str, event: str, fields: dict[str, object]) -> None:
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    entry = {"timestamp": time, "level": level, "agent": "trainer", "event": event} | _ALWAYS | fields
    entry["message"] = fields.get("message") or event
    _LINES.write(json.dumps(entry, ensure_ascii=False, default=str) + "\n")


def when_unread(act: Callable[[], object]) -> None:
    """Set what is done, in a thread of its own, when nobody will ever read stdout again: its pipe is broken."""
    _LINES.when_unread = act


def flush(seconds: float) -> None:
    """Wait at most so many seconds until all lines are written."""
    _LINES.flush(seconds)


class _Lines:
    """stdout as lines that are written at once if somebody takes them, and by a thread as soon as somebody does."""

    def __init__(self, descriptor: Callable[[], int | None]) -> None:
        self.when_unread: Callable[[], object] = lambda: None
        self._descriptor = descriptor
        self._turn = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._dropped = 0
        self._broken = False
        self._thread: threading.Thread | None = None

    def write(self, line: str) -> None:
        with self._turn:
            if self._broken:
                return
            descriptor = self._descriptor()
            if descriptor is None:
                sys.stdout.write(line)
                return
            left = line.encode(errors="backslashreplace")
            try:
                if not self._waiting:
                    left = _unwritten(descriptor, left, wait=False)
            except OSError:
                self._break()
                return
            if left:
                self._wait_with(left)

    def flush(self, seconds: float) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._broken or not self._waiting, seconds)

    def _wait_with(self, text: bytes) -> None:
        if len(self._waiting) >= _MAX_WAITING_LINES:
            del self._waiting[1]  # the first may be half written
            self._dropped += 1
        self._waiting.append(text)
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._drain, name="log", daemon=True)
            self._thread.start()
        self._turn.notify_all()

    def _drain(self) -> None:
        """Write the lines that wait, and wait for their reader."""
        while True:
            with self._turn:
                self._turn.wait_for(lambda: bool(self._waiting))
                text, descriptor = self._waiting[0], self._descriptor()
            try:
                if descriptor is not None:
                    _unwritten(descriptor, text, wait=True)
            except OSError:
                with self._turn:
                    self._break()
                return
            with self._turn:
                self._waiting.popleft()
                if not self._waiting and self._dropped:
                    told = {"level": "WARNING", "event": "lines dropped", "count": self._dropped}
                    self._waiting.append(f"{json.dumps(told)}\n".encode())
                    self._dropped = 0
                self._turn.notify_all()

    def _break(self) -> None:
        """Write no more. The caller holds the turn."""
        self._broken = True
        self._waiting.clear()
        self._turn.notify_all()
        threading.Thread(target=self.when_unread, name="unread", daemon=True).start()


def _unwritten(descriptor: int, text: bytes, *, wait: bool) -> bytes:
    """Write a text, and wait for its reader or not; returns what is left.

    A pipe that is ready takes so many bytes at once, also one that others have made not to wait; so does a file.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    while text and poll.poll(None if wait else 0):
        text = text[os.write(descriptor, text[: select.PIPE_BUF]) :]
    return text


def _descriptor() -> int | None:
    """stdout's file descriptor; None where it has none, as in a test that reads along."""
    try:
        return sys.stdout.fileno()
    except (OSError, ValueError):
        return None


_LINES = _Lines(_descriptor)
