"""The plan of a training, from the StageSpec and the rows' lengths alone: steps, their rows, their learning rate.

All of it is a function of the step: a resumed training needs only the step's number.
"""

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sluice_api.stages import StageSpec
from sluice_api.training import DEFAULT_WARMUP, Schedule, Training

_NO_EFFECT_ON_RESULT = frozenset(
    {"checkpointEverySteps", "keepCheckpoints", "microBatchSize", "gradientCheckpointing", "compile", "sharding"}
)
"""Settings that change how fast a training is and what it keeps, and not its result, but for rounding."""


def plan_digest(stage: StageSpec, inputs: Mapping[str, str]) -> str:
    """Digest of all that decides the trained weights: rows, checkpoints and exports are of one plan.

    Args:
        stage: The job.
        inputs: Digests of what it reads: rows, model, tokenizer.
    """
    fields = {"model", "dataset", "method", "lora", "training", "output", "resume_from"}
    # Without defaults: a field that is new makes no other plan of a job that runs already.
    asked = stage.spec.model_dump(mode="json", by_alias=True, include=fields, exclude_defaults=True)
    training = {name: value for name, value in asked.get("training", {}).items() if name not in _NO_EFFECT_ON_RESULT}
    plan = {**asked, "training": training, "inputs": dict(inputs)}
    text = json.dumps(plan, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(f"{stage.namespace}/{stage.name}/{stage.uid} {text}".encode()).hexdigest()


def settings_of(stage: StageSpec) -> dict[str, str]:
    """The settings that decide the result, by field. A job that resumes from another one must have the same."""
    spec = stage.spec
    fields = {"lora": spec.lora, "training": spec.training}
    found = {"method": str(spec.method)}
    for name, part in fields.items():
        values = part.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        found.update(
            {f"{name}.{field}": str(value) for field, value in values.items() if field not in _NO_EFFECT_ON_RESULT}
        )
    return found


def different_setting(one: Mapping[str, str], other: Mapping[str, str]) -> tuple[str, str, str] | None:
    """The first setting that differs, with its value in the one and in the other; None when all are the same."""
    for field in sorted({*one, *other}, key=lambda name: (name != "method", name)):
        if one.get(field) != other.get(field):
            return field, one.get(field, "the default"), other.get(field, "the default")
    return None


class Steps:
    """The rows of each optimizer step: every row once in an epoch, and each epoch in an order of its own.

    Steps and epochs are counted from 0.
    """

    def __init__(self, lengths: Sequence[int] | NDArray[np.int64], training: Training) -> None:
        """Divide rows of these lengths, in tokens, into steps."""
        self._lengths = np.asarray(lengths, np.int64)
        self._training = training
        self._epoch = lru_cache(maxsize=2)(self._in_steps)
        self._first_steps = [0]
        most = training.max_steps or math.inf
        while len(self._first_steps) <= training.epochs and self._first_steps[-1] < most:
            self._first_steps.append(self._first_steps[-1] + self._steps_of(len(self._first_steps) - 1))
        self.total = int(min(self._first_steps[-1], most))

    def rows(self, step: int) -> list[int]:
        """Indices of the rows of one step."""
        epoch, number = self._in_epoch(step)
        order, firsts = self._epoch(epoch)
        last = firsts[number + 1] if number + 1 < len(firsts) else len(order)
        found: list[int] = order[firsts[number] : last].tolist()
        return found

    def position(self, step: int) -> tuple[int, int]:
        """The epoch of a step, and the index in its order of the step's first row; also for the end of training."""
        epoch, number = self._in_epoch(step)
        return epoch, int(self._epoch(epoch)[1][number]) if epoch < self._training.epochs else 0

    def epochs_before(self, step: int) -> float:
        """Epochs that are done before a step, with a fraction."""
        epoch, number = self._in_epoch(step)
        return epoch + (number / len(self._epoch(epoch)[1]) if number else 0)

    def _in_epoch(self, step: int) -> tuple[int, int]:
        """The epoch of a step, and the step's number in it."""
        epoch = bisect_right(self._first_steps, step) - 1
        return epoch, step - self._first_steps[epoch]

    def _steps_of(self, epoch: int) -> int:
        if self._training.batch_tokens is None:
            return math.ceil(len(self._lengths) / self._training.batch_size)
        return len(self._epoch(epoch)[1])

    def _in_steps(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shuffle the rows for an epoch; returns their order, and the index in it of each step's first row."""
        rows, training = len(self._lengths), self._training
        order = np.random.default_rng((training.seed, epoch)).permutation(rows)
        if training.batch_tokens is None:
            return order, np.arange(0, rows, training.batch_size)
        ends = np.cumsum(self._lengths[order])
        firsts = [0]
        while True:
            before = int(ends[firsts[-1] - 1]) if firsts[-1] else 0
            following = int(np.searchsorted(ends, before + training.batch_tokens, side="right"))
            following = max(following, firsts[-1] + 1)  # a row of more tokens is a step by itself
            if following >= rows:
                return order, np.array(firsts)
            firsts.append(following)


def warmup_steps(total: int, training: Training) -> int:
    """Steps of warm-up: as many as were asked for; by default at most a quarter of all."""
    asked = training.warmup_steps
    return min(asked, total // 4) if asked == DEFAULT_WARMUP else asked


def learning_rate(step: int, total: int, training: Training) -> float:
    """Linear warm-up to the peak, then as the schedule says."""
    peak = float(training.learning_rate)
    warmup = warmup_steps(total, training)
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
