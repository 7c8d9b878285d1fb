"""The pods of a group as processes of this machine, and the job of one process that they are compared with."""

import json
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import pytest

from dev.cluster.ports import free_port
from sluice_api.stages import ExitCode, StageOutcome, TrainResult
from tests.unit.trainer.forked import Parent
from tests.unit.trainer.jobs import REPOSITORY, Job, chat

ROWS = [chat(f"What is item {i}?", f"Arr, item {i} be {i * 7} doubloons!") for i in range(53)]
"""33 to train on and 20 held out: a pass is four steps of 8 rows and one of a single row, which one rank of two has.
An evaluation is five micro-batches of 4: one rank of two has one less.
"""
SHORT = (("epochs", 3), ("warmupSteps", 2), ("microBatchSize", 4), ("checkpointEverySteps", 1))
"""15 steps, each of which is saved, so that its loss is logged. Two ranks do at once what one process does in turn."""
LONG = (("epochs", 9), ("warmupSteps", 2), ("batchSize", 2), ("microBatchSize", 1), ("checkpointEverySteps", 1000))
"""153 steps, of which only the last is saved, unless something happens in their middle."""
ONE_POD, TWO_PODS = {"gpus": 2}, {"nodes": 2}


FAILING_CHILD = """
import os

if os.environ.get("SLUICE_LOCAL_RANK") == "1":
    import torch
    from sluice_trainer.train.objective import NextToken

    whole, left = NextToken.summed_loss, iter(range(30))

    def summed_loss(*args):
        if next(left, None) is None:
            raise torch.OutOfMemoryError("no room")
        return whole(*args)

    NextToken.summed_loss = summed_loss
"""
"""What a pod's processes begin with."""


@dataclass
class Pod:
    """One pod: a process that is forked from one which has imported torch. The pod's other processes are not."""

    parent: Parent
    pid: int
    stdout: TextIO
    returncode: int | None = None

    def events(self) -> Iterator[dict[str, Any]]:
        """Its log lines as they come, of all its processes; its stderr is among them."""
        return (json.loads(line) for line in self.stdout if line.startswith("{"))

    def communicate(self) -> str:
        """Until nobody has its stdout any more; the lines that were left."""
        left = self.stdout.read()
        self.wait()
        return left

    def wait(self) -> int:
        """Until it has ended; its exit code, or minus the signal."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(self.parent.ask({"wait": self.pid}))
        return self.returncode

    def terminate(self) -> None:
        """SIGTERM."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)


class Pods:
    """The pods of a group, as processes of this machine."""

    def __init__(self, job: Job, parent: Parent) -> None:
        self.job, self.parent = job, parent
        self.port = free_port()
        self.all: list[Pod] = []

    def start(self, attempt: int = 1, custom: str = "") -> list[Pod]:
        """Those of an attempt.

        Args:
            custom: Python for each of their processes to begin with.
        """
        first = self.job.volumes / "first"
        first.mkdir(exist_ok=True)
        (first / "sitecustomize.py").write_text(custom)
        nodes = self.job.stage("Train").spec.resources.nodes
        pods = [self._pod(index, attempt, first, custom) for index in range(nodes)]
        self.all += pods
        return pods

    def _pod(self, index: int, attempt: int, first: Path, custom: str) -> Pod:
        stdout = self.job.volumes / f"stdout-{attempt}-{index}"
        os.mkfifo(stdout)
        environment = {
            "SLUICE_STAGE": self.job.stage("Train", attempt).to_json(),
            "SLUICE_VOLUMES": str(self.job.volumes),
            "SLUICE_TERMINATION_FILE": str(self._outcome(index)),
            "SLUICE_CREDENTIALS": str(self.job.volumes / "credentials"),
            "SLUICE_WORK": str(self.job.volumes / f"scratch-{attempt}-{index}"),  # a pod's own disk
            "SLUICE_LEADER_PORT": str(self.port),
            "JOB_COMPLETION_INDEX": str(index),
            "MASTER_ADDR": "127.0.0.1",
            "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONPATH": f"{first}:{REPOSITORY}/operator:{REPOSITORY}/trainer_image",
        }
        asked = {"stage": "train", "environment": environment, "log": str(stdout), "before": custom}
        return Pod(self.parent, self.parent.ask(asked), stdout.open(encoding="utf-8"))

    def outcome(self, index: int) -> StageOutcome:
        return StageOutcome.model_validate_json(self._outcome(index).read_bytes())

    def _outcome(self, index: int) -> Path:
        return self.job.volumes / f"outcome-{index}.json"


def prepare(alone: Job, pods: Pods, resources: dict[str, int], training: tuple[tuple[str, Any], ...]) -> Job:
    """Both jobs' rows; returns the job of one process."""
    alone = replace(alone, training=training)
    pods.job = replace(alone, name="group", spec=(*alone.spec, ("resources", resources)))
    alone.prepare()
    pods.job.prepare()
    return alone


def train_in_one_pod(pods: Pods, custom: str = "") -> tuple[list[dict[str, Any]], TrainResult]:
    """What the processes of a pod log, and what they come to."""
    (pod,) = pods.start(custom=custom)
    log = list(pod.events())
    assert pod.wait() == ExitCode.DONE
    result = pods.outcome(0).train
    assert result is not None
    return log, result


def saved_step(outcome: StageOutcome, done: int) -> int:
    """The step that a group which was stopped has saved: in the middle, and not before what it had done."""
    assert outcome.train is not None
    saved = outcome.train.checkpoint_step
    assert saved is not None
    assert done <= saved < 153
    return saved


def until_some_steps_are_done(pod: Pod) -> int:
    return next(int(event["step"]) for event in pod.events() if event["event"] == "report" and event["step"] > 0)


def losses(log: Iterable[dict[str, Any]]) -> dict[int, float]:
    """The loss of each step, as logged."""
    return figures(log, "loss")


def figures(log: Iterable[dict[str, Any]], name: str) -> dict[int, float]:
    """A figure of each step, as logged."""
    return {event["step"]: event[name] for event in log if event["event"] == "step"}


def trained(job: Job) -> bytes:
    """Weights and moments after the last step, and where it stands."""
    steps = max(int(folder.name.removeprefix("step-")) for folder in (job.work / "checkpoints").glob("step-*"))
    folder = job.work / "checkpoints" / f"step-{steps}"
    return (folder / "state.safetensors").read_bytes() + (folder / "state.json").read_bytes()


def printed(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]
