"""Everything that the next optimizer step depends on, as it was right after the last one."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from pydantic import NonNegativeInt
from torch import Tensor, nn

from sluice_api.model import Model
from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode
from sluice_trainer.errors import StageError
from sluice_trainer.train.group import Group

WEIGHT = "weight."
"""What the names of weights among a state's tensors begin with."""
CAUGHT_UP = 20.0
"""Seconds for an update of which all gradients are there."""
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
    evaluated_step: NonNegativeInt = 0
    """The last step after which the loss on the held-out rows was measured."""
    best_step: NonNegativeInt | None = None
    best_loss: float | None = None
    """The least of these losses, and its step."""
    micro_batch_tokens: NonNegativeInt | None = None
    """The most that a micro-batch holds; None before it is decided. Resuming keeps it: sums round as they are cut."""

    @property
    def is_evaluated(self) -> bool:
        """The loss on the held-out rows was measured after the last step; before the first one it always is."""
        return self.evaluated_step == self.step

    def evaluated(self, loss: float | None) -> "Standing":
        """The same after the loss on the held-out rows was measured; None without such rows."""
        changes: dict[str, object] = {"evaluated_step": self.step}
        if loss is not None and (self.best_loss is None or loss < self.best_loss):
            changes |= {"best_step": self.step, "best_loss": loss}
        return self.model_copy(update=changes)


@dataclass(frozen=True)
class Snapshot:
    """A copy of the state, on the CPU, that no later step changes."""

    standing: Standing
    tensors: dict[str, Tensor]


class TrainingState:
    """The trained weights, Adam's moments, and the position.

    A snapshot may be taken by another thread in the middle of the next step, which the next attempt then does again
    from its start. What is random in a step follows from the position.
    """

    def __init__(self, weights: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, standing: Standing) -> None:
        self.weights = weights
        self.optimizer = optimizer
        self.standing = standing
        self._turn = threading.Condition()
        self._last: int | None = None
        """No update goes beyond this step."""
        self._device = next(iter(weights.values())).device
        self._updated = self._now()

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Around the optimizer's update and its new standing, and only that: no snapshot sees half of it."""
        with self._turn:
            self._turn.wait_for(lambda: self._last is None or self.standing.step < self._last)
            yield
            self._updated = self._now()
            self._turn.notify_all()

    def snapshot(self) -> Snapshot:
        """Copy the state of the last optimizer step. Waits for an update in progress, a few milliseconds."""
        with self._turn:
            return self._copy()

    def hold(self) -> int:
        """Let no further update begin, since the process is about to end; returns the step of the last one."""
        with self._turn:
            self._last = self.standing.step
            return self._last

    def go_on_to(self, step: int) -> None:
        """Let an update begin all the same, and wait for its end.

        Raises:
            StageError: it did not come.
        """
        with self._turn:
            self._last = step
            self._turn.notify_all()
            if not self._turn.wait_for(lambda: self.standing.step >= step, CAUGHT_UP):
                raise StageError(Reason.POD_LOST, f"Step {step} did not come to its end here.", ExitCode.REQUEUE)

    def last_snapshot(self) -> Snapshot:
        """Copy the state of the last update that there will be."""
        self.hold()
        return self.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(snapshot.tensors[f"{WEIGHT}{name}"])
                moments = {moment: snapshot.tensors.get(f"{moment}.{name}") for moment in _MOMENTS}
                self.optimizer.state[weight] = {
                    moment: value.to(weight.device, copy=True) for moment, value in moments.items() if value is not None
                }
        self.standing = snapshot.standing
        self._updated = self._now()

    def make_moments(self) -> None:
        """Have all of the optimizer's memory before the first step, as AdamW would with it."""
        for weight in self.weights.values():
            self.optimizer.state[weight] = self.optimizer.state[weight] or _no_moments(weight)

    def broadcast_from_leader(self, group: Group, *, position_only: bool = False) -> None:
        """Continue from the leader's position, with the leader's weights and moments.

        Args:
            group: The processes of the training.
            position_only: Keep this process's own weights and moments, which are shards.
        """
        if group.rank.size == 1:
            return
        self.standing = Standing.model_validate_json(group.broadcast_text("standing", self.standing.to_json()))
        if position_only:
            return
        group.broadcast_([weight.detach() for weight in self.weights.values()])
        if self.standing.step > 0:
            for weight in self.weights.values():
                moments = self.optimizer.state[weight]
                group.broadcast_([moments[moment] for moment in _MOMENTS])
        self._updated = self._now()

    def _now(self) -> torch.cuda.Event | None:
        """The moment at which a GPU will have done all that it was told to until now."""
        return torch.cuda.current_stream(self._device).record_event() if self._device.type == "cuda" else None

    def _copy(self) -> Snapshot:
        """On a GPU beside its other work, which may be a step, or wait for ever for a peer that is gone."""
        stream = None
        if self._updated is not None:
            stream = torch.cuda.Stream(self._device)
            stream.wait_event(self._updated)
        tensors = {}
        with torch.cuda.stream(stream):
            for name, weight in self.weights.items():
                tensors[f"{WEIGHT}{name}"] = _on_cpu(weight)
                for moment, value in self.optimizer.state.get(weight, {}).items():
                    tensors[f"{moment}.{name}"] = _on_cpu(value)
        return Snapshot(self.standing, tensors)


def _no_moments(weight: nn.Parameter) -> dict[str, Tensor]:
    """As AdamW makes them at a weight's first step."""
    step = torch.zeros((), device=weight.device)
    return {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight), "step": step}


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
