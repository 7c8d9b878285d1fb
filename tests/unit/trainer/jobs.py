"""A job on this machine: volumes in a folder, stages in this process or in one of their own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sluice_api.artifacts import ADAPTER_FILES
from sluice_api.stages import PrepareResult, StageOutcome, StageSpec, TrainResult
from sluice_trainer.data.prepare import prepare
from sluice_trainer.prepared import Prepared, load
from sluice_trainer.ranks import Rank
from sluice_trainer.report import Reporter
from sluice_trainer.signals import Save, StopSignal

if TYPE_CHECKING:
    from sluice_trainer.train.checkpoints.checkpoint import Checkpoints

REPOSITORY = Path(__file__).parents[3]


def chat(question: str, answer: str) -> dict[str, Any]:
    """A row of the format Messages."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


ROWS = [chat(f"What is item {i}?", f"Arr, item {i} be {i * 7} doubloons!") for i in range(40)]


def write_rows(path: Path, rows: list[Any]) -> Path:
    """Write rows as JSONL; a string is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


FATAL = "~"
"""What a row has whose loss is no number, when the model is poisoned."""


def poison(model: Path) -> None:
    """Make the embedding of FATAL no number."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    (token,) = AutoTokenizer.from_pretrained(model)(FATAL)["input_ids"]
    weights = load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"][token] = float("nan")
    (model / "model.safetensors").unlink()  # a link to what other tests have
    save_file(weights, model / "model.safetensors", {"format": "pt"})


class NeverStopped(StopSignal):
    """For a stage in the tests' own process, whose SIGTERM is not ours."""

    def __init__(self) -> None:
        pass

    def set_save(self, save: Save) -> None:
        pass


@dataclass(frozen=True)
class Job:
    """A FineTuneJob whose claims are folders under `volumes`."""

    volumes: Path
    name: str = "job"
    dataset: str = "datasets/rows.jsonl"
    spec: tuple[tuple[str, Any], ...] = ()
    training: tuple[tuple[str, Any], ...] = ()

    def stage(self, stage: str, attempt: int = 1) -> StageSpec:
        spec = {
            "model": {"uri": "pvc://models/tiny"},
            "dataset": {"uri": f"pvc://{self.dataset}"},
            "output": {"uri": "pvc://adapters/out"},
            "lora": {"rank": 8, "dropout": "0.1"},
            "training": {"dtype": "float32", **dict(self.training)},
            **dict(self.spec),
        }
        return StageSpec.model_validate(
            {"namespace": "default", "name": self.name, "uid": "12345678-9abc", "stage": stage, "attempt": attempt}
            | {"spec": spec}
        )

    @property
    def work(self) -> Path:
        return self.volumes / "adapters" / "out" / f"{self.name}-12345678"

    @property
    def adapter(self) -> bytes:
        """The exported files that vLLM reads."""
        return b"".join((self.work / "export" / name).read_bytes() for name in ADAPTER_FILES)

    def prepare(self) -> PrepareResult:
        return prepare(self.stage("Prepare"), quiet_reporter())

    def prepared(self) -> Prepared:
        return load(self.work / "prepared", self.stage("Train"))

    def checkpoints(self) -> "Checkpoints":
        """The job's checkpoints, once it is prepared."""
        from sluice_trainer.train.checkpoints.checkpoint import Checkpoints

        return Checkpoints(self.stage("Train"), self.prepared().manifest.plan)

    def train(self) -> TrainResult:
        from sluice_trainer.train.loop import train

        return train(self.stage("Train"), Rank(), quiet_reporter(), NeverStopped())

    def export(self) -> str:
        from sluice_trainer.export.export import export

        return export(self.stage("Export"), quiet_reporter()).digest

    def start(self, stage: str, attempt: int = 1, **environment: str) -> subprocess.Popen[str]:
        """The stage in a process of its own, as in a pod: SIGTERM is blocked until it can be handled."""
        spec = self.stage(stage, attempt)
        return subprocess.Popen(
            [sys.executable, "-m", "sluice_trainer", stage.lower()],
            env={
                **os.environ,
                "PYTHONPATH": f"{REPOSITORY}/operator:{REPOSITORY}/trainer_image",
                "SLUICE_STAGE": spec.to_json(),
                "SLUICE_VOLUMES": str(self.volumes),
                "SLUICE_TERMINATION_FILE": str(self.volumes / "outcome.json"),
                "SLUICE_METRICS_PORT": "0",
                "OMP_NUM_THREADS": "1",
                **environment,
            },
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}),  # noqa: PLW1509
        )

    def outcome(self) -> StageOutcome:
        """What the last process left in its termination message."""
        return StageOutcome.model_validate_json((self.volumes / "outcome.json").read_bytes())


def events(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """The log lines of a process, as they come."""
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def quiet_reporter() -> Reporter:
    """A reporter that only logs."""
    reporter = Reporter(attempt=1, url=None)
    reporter.start()
    return reporter
