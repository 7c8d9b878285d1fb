"""The losses of a job that runs without a cluster, over all its runs: kept in a file in the job's own folder."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any


class Curve:
    """Losses by step, in nats, also of earlier runs. Of a step that is done again the later loss counts."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.training: dict[int, float] = {}
        self.evaluation: dict[int, float] = {}
        self._measured: float | None = None
        """What was last measured in this run: each report says it again."""
        if file.exists():
            for line in file.read_text(encoding="utf-8").splitlines():
                self._put(event_of(line))

    def take(self, event: dict[str, Any]) -> None:
        """Add what an event of the Train stage says, and write it into the file."""
        match event:
            case {"event": "begin", "resumed_from": step}:
                entry = {"resumed_from": step}
            case {"event": "step", "step": step, "loss": loss}:
                entry = {"step": step, "loss": loss}
            case {"event": "report", "evaluationLoss": loss, **report} if loss != self._measured:
                self._measured = loss
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
    """A line as an event; empty for one that is none."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
