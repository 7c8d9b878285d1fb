"""Stages in processes that are forked from one which has imported torch: they start in a tenth of the time.

The process in between also tells that a stage has been halted by SIGSTOP, which only a parent learns.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sluice_api.stages import ExitCode, StageOutcome
from tests.unit.trainer.jobs import REPOSITORY, Job

TRAINING = (("epochs", 3), ("microBatchSize", 4), ("checkpointEverySteps", 4))
"""15 steps of 27 micro-batches; steps 4, 8, 12 and 15 are saved, the last two of them kept."""
STAGES = ("Prepare", "Train", "Export")

_PARENT = """
import json, os, runpy, sys
import sluice_trainer.data.prepare, sluice_trainer.export.export, sluice_trainer.train.loop

def run_stage(stage, environment, log, before):
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for number in (1, 2):
        os.dup2(descriptor, number)
    sys.argv = ["sluice_trainer", stage]
    exec(before, {})
    runpy.run_module("sluice_trainer", run_name="__main__", alter_sys=True)

for line in sys.stdin:
    match json.loads(line):
        case {"wait": pid}:
            answer = os.waitpid(pid, os.WUNTRACED)[1]
        case asked:
            answer = os.fork()
            if answer == 0:
                run_stage(**asked)
    print(answer, flush=True)
"""


@dataclass
class StageProcess:
    """The process of one stage."""

    parent: "Parent"
    stage: str
    pid: int
    log: Path
    outcome_file: Path

    def wait(self) -> int:
        """Wait until it ends or halts; returns its exit code, or minus the signal that ended or halted it."""
        status = self.parent.ask({"wait": self.pid})
        return -os.WSTOPSIG(status) if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)

    def send(self, *numbers: signal.Signals) -> None:
        """Signals, one after the other."""
        for number in numbers:
            os.kill(self.pid, number)

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of one event that it has logged so far."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    @property
    def outcome(self) -> StageOutcome:
        """What it left in its termination message."""
        return StageOutcome.model_validate_json(self.outcome_file.read_bytes())


class Parent:
    """The process that has imported torch."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._started = 0

    def ask(self, question: dict[str, Any]) -> int:
        """What it answers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(self, job: Job, stage: str, failpoint: str = "", before: str = "") -> StageProcess:
        """A stage of a job.

        Args:
            failpoint: <place>:<nth time>:<signal>.
            before: Python for the new process to begin with.
        """
        self._started += 1
        log = job.volumes / f"{job.name}-{self._started}.log"
        outcome = log.with_suffix(".json")
        environment = {
            "SLUICE_STAGE": job.stage(stage, attempt=self._started).to_json(),
            "SLUICE_VOLUMES": str(job.volumes),
            "SLUICE_TERMINATION_FILE": str(outcome),
            "SLUICE_CREDENTIALS": str(job.volumes / "credentials"),
            "SLUICE_WORK": str(job.volumes / f"scratch-{self._started}"),  # empty, as a new pod's disk is
        }
        if failpoint:
            environment["SLUICE_FAILPOINT"] = failpoint
        asked = {"stage": stage.lower(), "environment": environment, "log": str(log), "before": before}
        return StageProcess(self, stage, self.ask(asked), log, outcome)

    def before(self, job: Job, stage: str) -> tuple[StageProcess, ...]:
        """All stages that come before this one, to their end."""
        return tuple(self.whole(job, earlier) for earlier in STAGES[: STAGES.index(stage)])

    def whole(self, job: Job, stage: str) -> StageProcess:
        """A stage to its end."""
        run = self.start(job, stage)
        assert run.wait() == ExitCode.DONE, run.log.read_text()
        return run


@contextmanager
def parent() -> Iterator[Parent]:
    """The process that has imported torch, and does nothing with it."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{REPOSITORY}/operator:{REPOSITORY}/trainer_image",
        "SLUICE_METRICS_PORT": "0",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Parent(process)
        assert process.stdin is not None
        process.stdin.close()


@dataclass(frozen=True)
class WholeJob:
    """All processes of a job from Prepare to Export, disturbed or not."""

    runs: tuple[StageProcess, ...]

    @property
    def losses(self) -> dict[int, set[float]]:
        """All losses that were logged for each step, by any attempt."""
        logged: dict[int, set[float]] = {}
        for run in self.runs:
            for event in run.events("step"):
                logged.setdefault(event["step"], set()).add(event["loss"])
        return logged

    @property
    def digest(self) -> str:
        """Of the adapter."""
        assert self.runs[-1].outcome.export is not None
        return self.runs[-1].outcome.export.digest


def run_to_the_end(parent: Parent, job: Job, *runs: StageProcess) -> WholeJob:
    """Run a job to its end, from the stage in which the last of some runs was disturbed."""
    left = STAGES[STAGES.index(runs[-1].stage) if runs else 0 :]
    return WholeJob((*runs, *(parent.whole(job, stage) for stage in left)))
