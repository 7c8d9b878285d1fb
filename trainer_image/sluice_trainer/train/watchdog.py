"""Notices that training stands still, and says where each thread is while it still can."""

import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

from sluice_trainer import logs
from sluice_trainer.report import Reporter

PATIENCE = 120.0
"""Seconds without a step that are never too long."""
STEPS = 5
"""Median steps that are never too long. The operator counts the same from the last report (plan/job/holding.py)."""

_INNERMOST = 6
"""Frames of the training thread that a report has room for."""
_LONGEST_MESSAGE = 1024


def allowed(step_seconds: float | None, patience: float) -> float:
    """Seconds that the next optimizer step may take, after steps of this median; None: there was none yet."""
    return max(STEPS * (step_seconds or 0.0), patience)


class Watchdog:
    """While its block runs, a step that takes too long becomes one log line with all stacks, and part of the report."""

    def __init__(self, reporter: Reporter, patience: float | None = None) -> None:
        self._reporter = reporter
        self._patience = PATIENCE if patience is None else patience
        self._training = threading.get_ident()
        self._over = threading.Event()
        self._newest: tuple[float, float | None] = (time.monotonic(), None)
        self._paused = False
        self._told = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While the block runs there are no steps to wait for."""
        self._paused = True
        yield
        self._newest = (time.monotonic(), self._newest[1])
        self._paused = False

    def step(self, step_seconds: float) -> None:
        """A step is done.

        Args:
            step_seconds: Median of the steps so far.
        """
        self._newest = (time.monotonic(), step_seconds)
        if self._told:
            self._told = False
            self._reporter.update(message=None)

    def __enter__(self) -> Self:
        self._newest = (time.monotonic(), None)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()

    def _watch(self) -> None:
        wait = self._patience
        while not self._over.wait(wait):
            if self._paused:
                wait = self._patience
                continue
            since, step_seconds = self._newest
            silent = time.monotonic() - since
            wait = allowed(step_seconds, self._patience) - silent
            if wait > 0:
                continue
            wait = self._patience
            if not self._told:
                self._tell(silent)
                self._told = True

    def _tell(self, silent: float) -> None:
        frames = sys._current_frames()
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        what = f"no progress for {silent:.0f} s"
        logs.warning(what, stacks={names.get(ident, str(ident)): _lines(frame) for ident, frame in frames.items()})
        where = "; ".join(_lines(frames[self._training])[-_INNERMOST:])
        self._reporter.update(message=f"{what}; training is in {where}"[:_LONGEST_MESSAGE])


def _lines(frame: FrameType) -> list[str]:
    """Its callers first: "/app/loop.py:160 _forward_and_backward"."""
    return [f"{call.filename}:{call.lineno} {call.name}" for call in traceback.extract_stack(frame)]
