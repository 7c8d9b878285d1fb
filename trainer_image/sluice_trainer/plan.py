"""What follows from the StageSpec and the number of rows alone: steps, their rows, their learning rate.

All of it is a function of the step, so that a resumed training needs no more than the step's number.
"""

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from sluice_api.stages import StageSpec
from sluice_api.training import Schedule, Training


def plan_digest(stage: StageSpec) -> str:
    """Tell two plans apart: covers what decides the result, not who goes first or which attempt this is."""
    fields = {"model", "dataset", "method", "lora", "training", "output"}
    plan = stage.spec.model_dump_json(by_alias=True, include=fields)
    return hashlib.sha256(f"{stage.namespace}/{stage.name}/{stage.uid} {plan}".encode()).hexdigest()


def steps_per_epoch(rows: int, training: Training) -> int:
    """Optimizer steps of one pass; the last one of a pass may have fewer rows."""
    return math.ceil(rows / training.batch_size)


def total_steps(rows: int, training: Training) -> int:
    """Optimizer steps of the whole training."""
    steps = training.epochs * steps_per_epoch(rows, training)
    return min(steps, training.max_steps) if training.max_steps else steps


def position(step: int, rows: int, training: Training) -> tuple[int, int]:
    """The pass that a step belongs to, and the index of its first row in that pass's order."""
    epoch, batch = divmod(step, steps_per_epoch(rows, training))
    return epoch, batch * training.batch_size


def rows_of_step(step: int, rows: int, training: Training) -> NDArray[np.int64]:
    """Indices of the rows of one step, counted from 0. Each pass has its own order, from the seed."""
    epoch, index = position(step, rows, training)
    order = np.random.default_rng((training.seed, epoch)).permutation(rows)
    return order[index : index + training.batch_size]


def learning_rate(step: int, total: int, training: Training) -> float:
    """Linear warm-up to the peak, then as the schedule says. Warm-up is at most a quarter of the steps."""
    peak = float(training.learning_rate)
    warmup = min(training.warmup_steps, total // 4)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / (total - warmup)
    match training.schedule:
        case Schedule.COSINE:
            return peak * 0.5 * (1 + math.cos(math.pi * done))
        case Schedule.LINEAR:
            return peak * (1 - done)
        case Schedule.CONSTANT:
            return peak
