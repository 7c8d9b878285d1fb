"""Everything that the next optimizer step depends on, as it was right after the last one."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from pydantic import NonNegativeInt
from torch import Tensor, nn

from sluice_api.model import Model
from sluice_trainer.train.generators import Generators

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Standing(Model):
    """Where training stands: the part of the state that is no tensor, state.json of a checkpoint."""

    step: NonNegativeInt = 0
    total_steps: NonNegativeInt
    epoch: NonNegativeInt = 0
    """The pass that the next step belongs to, from 0."""
    row: NonNegativeInt = 0
    """Index, in that pass's order, of the next step's first row."""
    learning_rate: float
    """Of the next step. Like epoch and row it follows from the step; it is here for a reader."""
    tokens: NonNegativeInt = 0
    """Real tokens trained on, over all attempts."""
    evaluation_loss_before: float | None = None
    generators: Generators


@dataclass(frozen=True)
class Snapshot:
    """A copy of the state, on the CPU, that no later step changes."""

    standing: Standing
    tensors: dict[str, Tensor]


class TrainingState:
    """The adapter's weights, Adam's moments, the position, and the random number generators.

    The generators are captured at each optimizer step, not when a snapshot is taken: a snapshot may be taken by
    another thread in the middle of the next step, which the next attempt then does again from its start.
    """

    def __init__(self, weights: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, standing: Standing) -> None:
        self.weights = weights
        self.optimizer = optimizer
        self.standing = standing
        self._updating = threading.Lock()

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Around the optimizer's update and its new standing, and only that: no snapshot sees half of it."""
        with self._updating:
            yield

    def snapshot(self) -> Snapshot:
        """Copy the state of the last optimizer step. Waits for an update in progress, a few milliseconds."""
        with self._updating:
            return self._copy()

    def last_snapshot(self) -> Snapshot:
        """Copy the state and let no further update begin: the process is about to end."""
        self._updating.acquire()
        return self._copy()

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(snapshot.tensors[f"adapter.{name}"])
                moments = {moment: snapshot.tensors.get(f"{moment}.{name}") for moment in _MOMENTS}
                self.optimizer.state[weight] = {
                    moment: value.to(weight.device, copy=True) for moment, value in moments.items() if value is not None
                }
        self.standing = snapshot.standing
        self.standing.generators.restore()

    def _copy(self) -> Snapshot:
        tensors = {}
        for name, weight in self.weights.items():
            tensors[f"adapter.{name}"] = _on_cpu(weight)
            for moment, value in self.optimizer.state.get(weight, {}).items():
                tensors[f"{moment}.{name}"] = _on_cpu(value)
        return Snapshot(self.standing, tensors)


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
