"""The loss curve of a job without a cluster, over all its runs, in a file in the job's own folder."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any


class LossCurve:
    """Losses by step, in nats, also of earlier runs. The loss of a step that is done again is replaced."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.training: dict[int, float] = {}
        self.evaluation: dict[int, float] = {}
        self._last_evaluation: float | None = None
        """The last held-out loss of this run: each report repeats it."""
        if file.exists():
            for line in file.read_text(encoding="utf-8").splitlines():
                self._put(event_of(line))

    def take(self, event: dict[str, Any]) -> None:
        """Add the loss that an event of the Train stage has, if any, here and in the file."""
        match event:
            case {"event": "begin", "resumed_from": step}:
                entry = {"resumed_from": step}
            case {"event": "step", "step": step, "loss": loss}:
                entry = {"step": step, "loss": loss}
            case {"event": "report", "evaluationLoss": loss, **report} if loss != self._last_evaluation:
                self._last_evaluation = loss
                entry = {"step": report.get("step", 0), "evaluation_loss": loss}
            case _:
                return
        self._put(entry)
        with suppress(OSError), self._file.open("a", encoding="utf-8") as file:  # a full disk ends no training here
            file.write(f"{json.dumps(entry)}\n")

    def _put(self, entry: dict[str, Any]) -> None:
        match entry:
            case {"resumed_from": step}:
                last = -1 if step is None else int(step)  # what came after it was lost, or of another plan
                self.training = {at: loss for at, loss in self.training.items() if at <= last}
                self.evaluation = {at: loss for at, loss in self.evaluation.items() if at <= last}
            case {"step": step, "loss": loss}:
                self.training[int(step)] = float(loss)
            case {"step": step, "evaluation_loss": loss}:
                self.evaluation[int(step)] = float(loss)


def event_of(line: str) -> dict[str, Any]:
    """Parse a line as an event; empty for a line that is none."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
