"""Trainings of the same rows by ours and by TRL: a process each, and what its output tells."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dev import models
from sluice_api.artifacts import MANIFEST
from sluice_api.reports import Activity
from sluice_api.stages import PrepareResult
from sluice_trainer.plan import Steps
from sluice_trainer.prepared import Prepared
from sluice_trainer.token_rows import TRAINING
from tests.bench import train_task
from tests.unit.trainer.jobs import REPOSITORY, Job, write_rows

THREADS = 2
SAVE_EVERY_STEPS = 3
MODEL = "smollm2-135m-instruct"
ENVIRONMENT = {
    "OMP_NUM_THREADS": str(THREADS),
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Of both: neither is told anything that the other is not."""


@dataclass(frozen=True)
class Run:
    """One training. Moments are seconds since its process was started."""

    first_report: float | None
    first_step_begins: float
    first_step_ends: float
    last_step_ends: float
    steps_cpu_seconds: float
    """Of all threads, from the first step's begin to the last one's end."""
    steps: int
    tokens: int
    """Real ones that went through the model, in the loss or not."""
    loss_tokens: int
    loss: float
    """Mean over the loss tokens of the last epoch, in nats, each as it was when its step came."""
    peak_mb: float
    cpu_seconds: float
    copies: tuple[float, ...] = ()
    """Seconds that training stood still for each save behind it."""
    writes: tuple[float, ...] = ()
    """Seconds until each of these was durable."""

    @property
    def tokens_per_second(self) -> float:
        """From the first step's begin to the last one's end."""
        return self.tokens / (self.last_step_ends - self.first_step_begins)

    @property
    def tokens_per_cpu_second(self) -> float:
        """The same by processor time: what else the machine does changes it less."""
        return self.tokens / self.steps_cpu_seconds


@dataclass(frozen=True)
class Line:
    """One event that a trainer printed, when it was read here, and the trainer's time on the processors by then."""

    seconds: float
    cpu_seconds: float
    event: str
    fields: dict[str, Any]


@dataclass(frozen=True)
class Heard:
    """All that a process said, and what the kernel says of it."""

    lines: list[Line]
    peak_mb: float
    cpu_seconds: float

    def of(self, event: str) -> list[Line]:
        """Its lines of one event, in order."""
        return [line for line in self.lines if line.event == event]


@dataclass(frozen=True)
class Task:
    """Prepared rows, for both trainers."""

    job: Job
    result: PrepareResult
    prepared: Prepared

    @property
    def packs_per_step(self) -> int:
        """TRL's full packs that hold about as many tokens as one of our steps."""
        return max(1, round(self.result.tokens * train_task.BATCH_ROWS / self.result.rows / train_task.LONGEST_ROW))


def new_volumes(folder: Path, rows: int) -> Path:
    """The claims models, datasets and adapters in a folder."""
    models.models()
    for claim in ("models", "adapters"):
        (folder / claim).mkdir()
    models.place(MODEL, folder / "models")
    write_rows(folder / "datasets" / "rows.jsonl", train_task.skewed_rows(rows))
    return folder


def prepare(volumes: Path, name: str, **training: Any) -> Task:
    """Run Prepare in a process of its own, so that no tokenizer counts as memory of this one."""
    job = Job(
        volumes,
        name=name,
        spec=(
            ("model", {"uri": f"pvc://models/{MODEL}"}),
            ("dataset", {"uri": "pvc://datasets/rows.jsonl", "validationSplit": "0%"}),
            ("lora", {"rank": train_task.RANK, "alpha": train_task.ALPHA}),
        ),
        training=tuple(
            {
                "epochs": train_task.EPOCHS,
                "batchSize": train_task.BATCH_ROWS,
                "maxSequenceLength": train_task.LONGEST_ROW,
                "learningRate": f"{train_task.LEARNING_RATE:g}",
                "schedule": "Constant",
                "warmupSteps": 0,
                "seed": train_task.SEED,
                "checkpointEverySteps": SAVE_EVERY_STEPS,
                **training,
            }.items()
        ),
    )
    listen("Prepare", job.start("Prepare", attempt=1, **ENVIRONMENT), time.monotonic())
    result = job.outcome().prepare
    if result is None or result.refused_rows or result.overlong_rows:
        raise SystemExit(f"Prepare has not taken every row as it is: {result}")
    return Task(job, result, job.prepared())


def by_ours(task: Task) -> Run:
    """The Train stage, from its beginning."""
    shutil.rmtree(task.job.work / "checkpoints", ignore_errors=True)
    since = time.monotonic()
    heard = listen("Train", task.job.start("Train", attempt=1, **ENVIRONMENT), since)
    reports, steps = heard.of("report"), heard.of("step")
    rows = task.prepared.training
    plan = Steps(rows.lengths, task.job.stage("Train").spec.training)
    loss_tokens = [sum(int(rows[row].loss_mask.sum()) for row in plan.rows(step)) for step in range(len(steps))]
    begin = next(line for line in reports if line.fields["activity"] == Activity.TRAINING)
    copied = {line.fields["step"]: line.fields["seconds"] for line in heard.of("state copied")}
    return Run(
        first_report=reports[0].seconds,
        first_step_begins=begin.seconds,
        first_step_ends=steps[0].seconds,
        last_step_ends=steps[-1].seconds,
        steps_cpu_seconds=steps[-1].cpu_seconds - begin.cpu_seconds,
        steps=len(steps),
        tokens=_tokens_of(task.job.work / "checkpoints"),
        loss_tokens=sum(loss_tokens),
        loss=_last_epoch([line.fields["loss"] for line in steps], loss_tokens),
        peak_mb=heard.peak_mb,
        cpu_seconds=heard.cpu_seconds,
        copies=tuple(copied.values()),
        writes=tuple(line.fields["seconds"] for line in heard.of("checkpoint") if line.fields["step"] in copied),
    )


def by_trl(task: Task, arm: str, steps: int = -1) -> Run:
    """TRL's SFTTrainer: `arm` is tuned or defaults (trl_arm.py)."""
    folder = task.job.work
    arguments = (
        task.job.volumes / "models" / MODEL,
        folder / "prepared" / TRAINING,
        folder / "trl",
        arm,
        task.packs_per_step,
        steps,
    )
    since = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.trl_arm", *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        text=True,
    )
    heard = listen(f"TRL {arm}", process, since)
    begin, ended = heard.of("begin")[0], heard.of("step")
    loss_tokens = [line.fields["loss_tokens"] for line in ended]
    return Run(
        first_report=None,
        first_step_begins=begin.seconds,
        first_step_ends=ended[0].seconds,
        last_step_ends=ended[-1].seconds,
        steps_cpu_seconds=ended[-1].cpu_seconds - begin.cpu_seconds,
        steps=len(ended),
        tokens=sum(line.fields["tokens"] for line in ended),
        loss_tokens=sum(loss_tokens),
        loss=_last_epoch([line.fields["loss"] for line in heard.of("loss")], loss_tokens),
        peak_mb=heard.peak_mb,
        cpu_seconds=heard.cpu_seconds,
    )


def listen(what: str, process: subprocess.Popen[str], since: float) -> Heard:
    """Read a process's events until it has ended well."""
    assert process.stdout is not None
    lines = []
    for text in process.stdout:
        fields = json.loads(text)
        lines.append(Line(time.monotonic() - since, _cpu_seconds(process.pid), fields["event"], fields))
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = [line.fields for line in lines[-2:]]
        raise SystemExit(f"{what} has ended with {process.returncode}; its last events: {last}")
    return Heard(lines, usage.ru_maxrss * 1024 / 1e6, usage.ru_utime + usage.ru_stime)


def _cpu_seconds(pid: int) -> float:
    """Of all threads of a process that has not been waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _last_epoch(losses: Sequence[float], loss_tokens: Sequence[int]) -> float:
    """The mean over the loss tokens, of the last epoch's share of the steps."""
    steps = -(-len(losses) // train_task.EPOCHS)
    last = list(zip(losses, loss_tokens, strict=True))[-steps:]
    return sum(loss * tokens for loss, tokens in last) / sum(tokens for _, tokens in last)


def _tokens_of(checkpoints: Path) -> int:
    """What the trainer itself has counted when it made its last checkpoint."""
    step = json.loads((checkpoints / MANIFEST).read_bytes())["result"]["step"]
    return int(json.loads((checkpoints / f"step-{step}" / "state.json").read_bytes())["tokens"])
