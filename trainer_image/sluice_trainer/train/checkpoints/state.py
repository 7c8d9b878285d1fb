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
"""Prefix of the names of weights among a state's tensors."""
CATCH_UP_SECONDS = 20.0
"""Seconds for an update whose gradients are all there."""
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Progress(Model):
    """How far training is: the part of the state that is not tensors, state.json of a checkpoint."""

    step: NonNegativeInt = 0
    total_steps: NonNegativeInt
    epoch: NonNegativeInt = 0
    """Epoch of the next step, from 0."""
    row: NonNegativeInt = 0
    """Index, in that epoch's order, of the next step's first row."""
    learning_rate: float
    """Learning rate of the next step. Like epoch and row it follows from the step; it is here for a reader."""
    tokens: NonNegativeInt = 0
    """Real tokens trained on, over all attempts."""
    evaluation_loss_before: float | None = None
    evaluated_step: NonNegativeInt = 0
    """The last step after which the loss on the held-out rows was measured."""
    best_step: NonNegativeInt | None = None
    best_loss: float | None = None
    """The lowest of these losses. best_step is its step."""
    micro_batch_tokens: NonNegativeInt | None = None
    """The most tokens of a micro-batch; None before it is decided. Resuming keeps it: the bits depend on it."""

    @property
    def is_evaluated(self) -> bool:
        """Whether the held-out loss was measured after the last step. Before the first step it always is."""
        return self.evaluated_step == self.step

    def evaluated(self, loss: float | None) -> "Progress":
        """The progress after the held-out loss was measured. The loss is None without held-out rows."""
        changes: dict[str, object] = {"evaluated_step": self.step}
        if loss is not None and (self.best_loss is None or loss < self.best_loss):
            changes |= {"best_step": self.step, "best_loss": loss}
        return self.model_copy(update=changes)


@dataclass(frozen=True)
class Snapshot:
    """A copy of the state, on the CPU, that no later step changes."""

    progress: Progress
    tensors: dict[str, Tensor]

    @property
    def is_finite(self) -> bool:
        """Whether all weights are numbers; Adam's moments may be infinite where a gradient's square was."""
        return all(bool(value.isfinite().all()) for name, value in self.tensors.items() if name.startswith(WEIGHT))


class TrainingState:
    """The trained weights, Adam's moments, and the progress.

    Another thread may take a snapshot in the middle of the next step, which the next attempt then does again from its
    start. What is random in a step follows from its number.
    """

    def __init__(self, weights: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        self.weights = weights
        self.optimizer = optimizer
        self.progress = progress
        self._turn = threading.Condition()
        self._last_allowed: int | None = None
        """No update goes beyond this step; None: updates go on."""
        self._device = next(iter(weights.values())).device
        self._updated = self._record_event()

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Hold snapshots back during the block: the optimizer's update and the new progress, and only that."""
        with self._turn:
            self._turn.wait_for(lambda: self._last_allowed is None or self.progress.step < self._last_allowed)
            yield
            self._updated = self._record_event()
            self._turn.notify_all()

    def snapshot(self) -> Snapshot:
        """Copy the state of the last optimizer step. Waits for an update in progress, a few milliseconds."""
        with self._turn:
            return self._copy()

    def stop_updates(self) -> int:
        """Let no further update begin, because the process is about to end. Returns the step of the last one."""
        with self._turn:
            self._last_allowed = self.progress.step
            return self._last_allowed

    def allow_updates_to(self, step: int) -> None:
        """Allow updates up to a step after all, and wait for the end of the last.

        Raises:
            StageError: it did not come in time.
        """
        with self._turn:
            self._last_allowed = step
            self._turn.notify_all()
            if not self._turn.wait_for(lambda: self.progress.step >= step, CATCH_UP_SECONDS):
                raise StageError(Reason.POD_LOST, f"Step {step} did not come to its end here.", ExitCode.REQUEUE)

    def last_snapshot(self) -> Snapshot:
        """Stop updates, and copy the state of the last one."""
        self.stop_updates()
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
        self.progress = snapshot.progress
        self._updated = self._record_event()

    def allocate_moments(self) -> None:
        """Allocate the optimizer's moments before the first step, which is when AdamW would."""
        for weight in self.weights.values():
            self.optimizer.state[weight] = self.optimizer.state[weight] or _zero_moments(weight)

    def broadcast_from_leader(self, group: Group, *, position_only: bool = False) -> None:
        """Continue from the leader's position, with the leader's weights and moments.

        Args:
            group: The processes of the training.
            position_only: Keep this process's own weights and moments, which are shards.
        """
        if group.rank.size == 1:
            return
        self.progress = Progress.model_validate_json(group.broadcast_text("progress", self.progress.to_json()))
        if position_only:
            return
        group.broadcast_([weight.detach() for weight in self.weights.values()])
        if self.progress.step > 0:
            for weight in self.weights.values():
                moments = self.optimizer.state[weight]
                group.broadcast_([moments[moment] for moment in _MOMENTS])
        self._updated = self._record_event()

    def _record_event(self) -> torch.cuda.Event | None:
        """Record a CUDA event after all work that is queued on the GPU by now; None on a CPU."""
        return torch.cuda.current_stream(self._device).record_event() if self._device.type == "cuda" else None

    def _copy(self) -> Snapshot:
        """Copy to the CPU; on a GPU in a stream of its own, as the main one may wait for a lost peer for ever."""
        stream = None
        if self._updated is not None:
            stream = torch.cuda.Stream(self._device)
            stream.wait_event(self._updated)
        tensors = {}
        with torch.cuda.stream(stream):
            for name, weight in self.weights.items():
                tensors[f"{WEIGHT}{name}"] = _copy_to_cpu(weight)
                for moment, value in self.optimizer.state.get(weight, {}).items():
                    tensors[f"{moment}.{name}"] = _copy_to_cpu(value)
        return Snapshot(self.progress, tensors)


def _zero_moments(weight: nn.Parameter) -> dict[str, Tensor]:
    """The moments that AdamW makes at a weight's first step."""
    step = torch.zeros((), device=weight.device)
    return {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight), "step": step}


def _copy_to_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
