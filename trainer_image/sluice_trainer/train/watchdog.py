"""Notices that training has stalled, and reports where each thread is."""

import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from sluice_api.stall import STALL_FLOOR_SECONDS, stalled_after
from sluice_trainer import logs
from sluice_trainer.report import Reporter

_REPORTED_FRAMES = 6
"""Innermost frames of the training thread that a report has room for."""
_LONGEST_MESSAGE = 1024
"""Characters."""


class Watchdog:
    """While its block runs, training that stalls becomes one log line with all stacks, and part of the report."""

    def __init__(self, reporter: Reporter, floor_seconds: float | None = None) -> None:
        self._reporter = reporter
        self._floor_seconds = STALL_FLOOR_SECONDS if floor_seconds is None else floor_seconds
        self._training = threading.get_ident()
        self._over = threading.Event()
        self._newest: tuple[float, float | None] = (time.monotonic(), None)
        """When the last sign of life was, and the median seconds of a step."""
        self._reported = False

    def heartbeat(self, **changes: Any) -> None:
        """Note a sign of life, and tell the operator: a part of the work is done, or another one begins.

        Args:
            changes: Fields of the report.
        """
        self._newest = (time.monotonic(), self._newest[1])
        self._reported = False
        self._reporter.update(message=None, **changes)

    def step(self, step_seconds: float, **changes: Any) -> None:
        """Note that a step is done, and tell the operator.

        Args:
            step_seconds: Median duration of the steps so far.
            changes: Fields of the report, beside the median.
        """
        self._newest = (time.monotonic(), step_seconds)
        self.heartbeat(step_seconds=round(step_seconds, 4), **changes)

    @contextmanager
    def heartbeats(self, **changes: Any) -> Iterator[None]:
        """Give signs of life during a block that may take long, and ends by itself if nothing moves in it."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(self._floor_seconds / 4):
                self.heartbeat(**changes)

        threading.Thread(target=beat, name="heartbeats", daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def __enter__(self) -> Self:
        self._newest = (time.monotonic(), None)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()

    def _watch(self) -> None:
        wait = self._floor_seconds
        while not self._over.wait(wait):
            since, step_seconds = self._newest
            silent = time.monotonic() - since
            wait = stalled_after(step_seconds, self._floor_seconds) - silent
            if wait > 0:
                continue
            wait = self._floor_seconds
            if not self._reported:
                self._report_stall(silent)
                self._reported = True

    def _report_stall(self, silent: float) -> None:
        frames = sys._current_frames()
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        what = f"no progress for {silent:.0f} s"
        logs.warning(what, stacks={names.get(ident, str(ident)): _lines(frame) for ident, frame in frames.items()})
        where = "; ".join(_lines(frames[self._training])[-_REPORTED_FRAMES:])
        self._reporter.update(message=f"{what}; training is in {where}"[:_LONGEST_MESSAGE])


def _lines(frame: FrameType) -> list[str]:
    """The stack of a frame, outermost call first: "/app/loop.py:160 _forward_and_backward"."""
    return [f"{call.filename}:{call.lineno} {call.name}" for call in traceback.extract_stack(frame)]
