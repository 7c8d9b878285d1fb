"""The pods of a group as processes of this machine, and the job of one process that they are compared with."""

import json
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dev.cluster.ports import free_port
from sluice_api.stages import ExitCode, StageOutcome, TrainResult
from tests.unit.trainer.jobs import Job, chat, events

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
    from sluice_trainer.train import batches

    whole, left = batches.summed_loss, iter(range(30))

    def summed_loss(model, batch):
        if next(left, None) is None:
            raise torch.OutOfMemoryError("no room")
        return whole(model, batch)

    batches.summed_loss = summed_loss
"""
"""A sitecustomize.py, which Python runs first."""


class Pods:
    """The pods of a group, as processes of this machine."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.port = free_port()
        self.all: list[subprocess.Popen[str]] = []

    def start(self, attempt: int = 1, **environment: str) -> list[subprocess.Popen[str]]:
        pods = [
            self.job.start(
                "Train",
                attempt,
                **{
                    "JOB_COMPLETION_INDEX": str(index),
                    "MASTER_ADDR": "127.0.0.1",
                    "SLUICE_LEADER_PORT": str(self.port),
                    "SLUICE_TERMINATION_FILE": str(self._outcome(index)),
                    "GLOO_SOCKET_IFNAME": "lo",
                    **environment,
                },
            )
            for index in range(self.job.stage("Train").spec.resources.nodes)
        ]
        self.all += pods
        return pods

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


def train_in_one_pod(pods: Pods, **environment: str) -> tuple[list[dict[str, Any]], TrainResult]:
    """What the processes of a pod log, and what they come to."""
    (pod,) = pods.start(1, **environment)
    log = list(events(pod))
    assert pod.wait(10) == ExitCode.DONE
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


def until_some_steps_are_done(process: subprocess.Popen[str]) -> int:
    return next(int(event["step"]) for event in events(process) if event["event"] == "report" and event["step"] > 0)


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
