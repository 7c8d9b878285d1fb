"""A job whose output is in an object store, as one attempt or another has it."""

import os
from pathlib import Path

import torch

from sluice_trainer.train.checkpoints.checkpoint import Checkpoints
from sluice_trainer.train.checkpoints.state import Progress, Snapshot
from tests.unit.trainer.jobs import Job


def state(step: int, bits: float = 0.0) -> Snapshot:
    tensors = {"weight.a": torch.full((64,), step + bits)}
    return Snapshot(Progress(step=step, total_steps=100, learning_rate=0.1), tensors)


def attempt(job: Job, number: int) -> Checkpoints:
    """The checkpoints as one attempt has them, which is a pod with a disk of its own."""
    os.environ["SLUICE_WORK"] = str(job.volumes / f"scratch-{number}")
    return Checkpoints(job.stage("Train", number), plan="the plan")


def resumed(job: Job, number: int) -> tuple[int, float] | None:
    """The step and the bits from which an attempt goes on."""
    checkpoints = attempt(job, number)
    step = checkpoints.newest_step()
    return None if step is None else (step, checkpoints.read(step).tensors["weight.a"][0].item() - step)


def work_in(bucket: Path) -> Path:
    return bucket / "out" / "job-12345678"


def copies_of(bucket: Path, name: str) -> list[Path]:
    return sorted((work_in(bucket) / name).glob("attempt-*"))
