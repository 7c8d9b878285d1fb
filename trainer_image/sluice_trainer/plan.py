"""What follows from the StageSpec and the rows' lengths alone: steps, their rows, their learning rate.

All of it is a function of the step, so that a resumed training needs no more than the step's number.
"""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sluice_api.stages import StageSpec
from sluice_api.training import Schedule, Training


def plan_digest(stage: StageSpec) -> str:
    """Tell two plans apart: covers what decides the result, not who goes first or which attempt this is."""
    fields = {"model", "dataset", "method", "lora", "training", "output", "resume_from"}
    # Without defaults, so that a field that is new in this version does not make another plan of a running job's.
    plan = stage.spec.model_dump_json(by_alias=True, include=fields, exclude_defaults=True)
    return hashlib.sha256(f"{stage.namespace}/{stage.name}/{stage.uid} {plan}".encode()).hexdigest()


_HOW_FAST = frozenset(
    {"checkpointEverySteps", "keepCheckpoints", "microBatchSize", "gradientCheckpointing", "compile", "sharding"}
)
"""Settings that change how fast a training is and what it keeps, and not its result, but for rounding."""


def settings_of(stage: StageSpec) -> dict[str, str]:
    """What the job says of how to learn, by field: what a training must share that another one goes on from."""
    spec = stage.spec
    fields = {"lora": spec.lora, "training": spec.training}
    found = {"method": str(spec.method)}
    for name, part in fields.items():
        values = part.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        found.update({f"{name}.{field}": str(value) for field, value in values.items() if field not in _HOW_FAST})
    return found


class Steps:
    """Which rows each optimizer step has: every row once in a pass, and each pass in an order of its own.

    Steps are counted from 0.
    """

    def __init__(self, lengths: Sequence[int], training: Training) -> None:
        """How rows of so many tokens are dealt out."""
        self._lengths = np.asarray(lengths, np.int64)
        self._training = training
        self._pass = lru_cache(maxsize=2)(self._dealt)
        self._begins = [0]
        most = training.max_steps or math.inf
        while len(self._begins) <= training.epochs and self._begins[-1] < most:
            self._begins.append(self._begins[-1] + self._steps_of(len(self._begins) - 1))
        self.total = int(min(self._begins[-1], most))

    def rows(self, step: int) -> list[int]:
        """Indices of the rows of one step."""
        epoch, place = self._place(step)
        order, firsts = self._pass(epoch)
        last = firsts[place + 1] if place + 1 < len(firsts) else len(order)
        found: list[int] = order[firsts[place] : last].tolist()
        return found

    def position(self, step: int) -> tuple[int, int]:
        """The pass that a step belongs to, and the index of its first row in that pass's order; of the end too."""
        epoch, place = self._place(step)
        return epoch, int(self._pass(epoch)[1][place]) if epoch < self._training.epochs else 0

    def passes(self, step: int) -> float:
        """Passes over all rows that have been done before a step."""
        epoch, place = self._place(step)
        return epoch + (place / len(self._pass(epoch)[1]) if place else 0)

    def _place(self, step: int) -> tuple[int, int]:
        epoch = bisect_right(self._begins, step) - 1
        return epoch, step - self._begins[epoch]

    def _steps_of(self, epoch: int) -> int:
        if self._training.batch_tokens is None:
            return math.ceil(len(self._lengths) / self._training.batch_size)
        return len(self._pass(epoch)[1])

    def _dealt(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A pass's rows in their order, and in it the first row of each step."""
        rows, training = len(self._lengths), self._training
        order = np.random.default_rng((training.seed, epoch)).permutation(rows)
        if training.batch_tokens is None:
            return order, np.arange(0, rows, training.batch_size)
        ends = np.cumsum(self._lengths[order])
        firsts = [0]
        while True:
            before = int(ends[firsts[-1] - 1]) if firsts[-1] else 0
            following = int(np.searchsorted(ends, before + training.batch_tokens, side="right"))
            following = max(following, firsts[-1] + 1)  # a row that is larger is a step by itself
            if following >= rows:
                return order, np.array(firsts)
            firsts.append(following)


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
