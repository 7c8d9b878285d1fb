"""Notices that training stands still, and says where each thread is while it still can."""

import sys
import threading
import time
import traceback
from types import FrameType, TracebackType
from typing import Any, Self

from sluice_trainer import logs
from sluice_trainer.report import Reporter

PATIENCE = 120.0
"""Seconds without a sign of life that are never too long."""
STEPS = 5
"""Median steps that are never too long. The operator counts the same from the last report (plan/job/holding.py)."""

_INNERMOST = 6
"""Frames of the training thread that a report has room for."""
_LONGEST_MESSAGE = 1024


def allowed(step_seconds: float | None, patience: float) -> float:
    """Seconds that may pass until the next sign of life, after steps of this median; None: there was none yet."""
    return max(STEPS * (step_seconds or 0.0), patience)


class Watchdog:
    """While its block runs, training that stands still becomes one log line with all stacks, and part of the report."""

    def __init__(self, reporter: Reporter, patience: float | None = None) -> None:
        self._reporter = reporter
        self._patience = PATIENCE if patience is None else patience
        self._training = threading.get_ident()
        self._over = threading.Event()
        self._newest: tuple[float, float | None] = (time.monotonic(), None)
        self._told = False

    def goes_on(self, **changes: Any) -> None:
        """A part of the work is done, or another one begins: a sign of life, for the operator too.

        Args:
            changes: Of the report.
        """
        self._newest = (time.monotonic(), self._newest[1])
        self._told = False
        self._reporter.update(message=None, **changes)

    def step(self, step_seconds: float, **changes: Any) -> None:
        """A step is done.

        Args:
            step_seconds: Median of the steps so far.
            changes: Of the report, which has the median too.
        """
        self._newest = (time.monotonic(), step_seconds)
        self.goes_on(step_seconds=round(step_seconds, 4), **changes)

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
