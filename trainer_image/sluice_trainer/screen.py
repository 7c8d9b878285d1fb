"""The output of a run without a cluster: text and a progress bar on a terminal, JSON lines elsewhere."""

import errno
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from tqdm import tqdm

from sluice_api.stages import ExitCode, Stage, StageOutcome
from sluice_trainer.loss_curve import LossCurve, event_of

_OF_EVERY_LINE = ("timestamp", "agent", "run_id", "message")


class Output:
    """stdout, until nobody reads it any more: the terminal is closed, or the pager has ended."""

    def __init__(self, out: TextIO | None) -> None:
        self._out = out or io.StringIO()  # closed by the shell: >&-
        self.is_lost = False

    def write(self, text: str) -> None:
        """Write all of it now; nothing once the reader is gone."""
        if self.is_lost:
            return
        try:
            self._out.write(text)
            self._out.flush()
        except OSError as error:
            self.is_lost = True
            if error.errno != errno.EPIPE:
                sys.stderr.write(f"The output can't be written ({error.strerror}). The stage saves what it has.\n")
            with suppress(OSError, ValueError):  # Python writes the rest when it ends, and would complain
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())

    def flush(self) -> None:
        """Do nothing: each write is flushed."""

    def isatty(self) -> bool:
        """Whether a person reads it."""
        return self._out.isatty()


class Screen:
    """Shows the stages' log lines. This base class passes them on unchanged, for programs that read them."""

    def __init__(self, out: Output, curve: LossCurve) -> None:
        self._out = out
        self._curve = curve

    @staticmethod
    @contextmanager
    def of(out: Output, curve: LossCurve, *, is_read: bool) -> "Iterator[Screen]":
        """Make the screen for a person who reads it, or for a program. Losses in the lines go into the curve."""
        screen = (Terminal if is_read else Screen)(out, curve)
        try:
            yield screen
        finally:
            screen.close()

    @property
    def is_lost(self) -> bool:
        """Whether nobody can read any more."""
        return self._out.is_lost

    def begins(self, stage: Stage) -> None:
        """Handle the beginning of a stage."""

    def line(self, line: str) -> None:
        """Handle a line of a stage: one JSON object, or a line of some library."""
        event = event_of(line)
        self._curve.take(event)
        self.shown(line, event)

    def shown(self, line: str, event: dict[str, Any]) -> None:
        """Show a line."""
        del event
        self._write(line)

    def done(self, outcome: StageOutcome) -> None:
        """Handle the end of a stage. Here its last line is enough."""

    def ended_badly(self, stage: Stage, code: int, outcome: StageOutcome | None) -> None:
        """Handle the failure of a stage. Here its last line is enough."""

    def finished(self, summary: str) -> None:
        """Show the summary when all stages are done."""
        self._write(json.dumps({"event": "finished", "message": summary}) + "\n")

    def close(self) -> None:
        """End the output."""

    def _write(self, text: str) -> None:
        self._out.write(text)


class Terminal(Screen):
    """Text for a person, and a progress bar while training."""

    _bar: "tqdm[Any] | None" = None
    _stage = Stage.PREPARE

    def begins(self, stage: Stage) -> None:
        """Show which stage begins."""
        self._stage = stage
        self._write(f"{stage} ...\n")

    def shown(self, line: str, event: dict[str, Any]) -> None:
        """Show reports by the bar; warnings and lines of libraries as text."""
        match event:
            case {"event": "report", "activity": activity, **report}:
                self._move(str(activity), report)
            case {"event": event_name, "level": "WARNING", **fields}:
                details = ", ".join(f"{name} {value}" for name, value in fields.items() if name not in _OF_EVERY_LINE)
                self._say(f"  {event_name}: {details}")
            case {}:
                if not event:
                    self._say(f"  {line.rstrip()}")

    def done(self, outcome: StageOutcome) -> None:
        """Show the result of a stage in a line."""
        self.close()
        if prepared := outcome.prepare:
            refused = f", {prepared.refused_rows} refused" if prepared.refused_rows else ""
            overlong = f", {prepared.overlong_rows} too long" if prepared.overlong_rows else ""
            self._write(
                f"  {prepared.rows} rows to train on, {prepared.validation_rows} held out{refused}{overlong}; "
                f"{prepared.tokens:,} tokens, {prepared.loss_tokens:,} of them in the loss; {prepared.steps} steps\n"
            )
        if trained := outcome.train:
            before, after = trained.evaluation_loss_before, trained.evaluation_loss_after
            if before is not None and after is not None:
                self._write(f"  loss on the held-out rows: {before:.4f} before, {after:.4f} after\n")

    def ended_badly(self, stage: Stage, code: int, outcome: StageOutcome | None) -> None:
        """Show why the stage failed, and what to do next."""
        self.close()
        message = outcome.message if outcome else f"The process ended with {code} and no word."
        again = " Run the same command to go on." if code == ExitCode.REQUEUE else ""
        self._write(f"  {stage}: {message}{again}\n")

    def finished(self, summary: str) -> None:
        """Show where everything is."""
        self._write(f"{summary}\n")

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _move(self, activity: str, report: dict[str, Any]) -> None:
        total = report.get("totalSteps", 0)
        if not total or self._stage is not Stage.TRAIN:
            return
        if self._bar is None:
            self._bar = tqdm(total=total, initial=report.get("step", 0), unit="step", file=self._out, leave=True)
        self._bar.set_description(f"  {activity}", refresh=False)
        shown = {"loss": "loss", "held out": "evaluationLoss", "tokens/s": "tokensPerSecond"}
        self._bar.set_postfix({name: report[key] for name, key in shown.items() if key in report}, refresh=False)
        self._bar.update(report.get("step", 0) - self._bar.n)
        self._bar.refresh()

    def _say(self, text: str) -> None:
        if self._bar is None:
            self._write(f"{text}\n")
        else:
            self._bar.write(text, file=self._out)
