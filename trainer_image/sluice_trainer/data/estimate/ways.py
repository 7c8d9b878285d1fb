"""How training will go about it on a GPU: what the trainer decides there, foreseen.

Settings with the value Auto are decided by the trainer on the GPU itself (train.trials.budget, train.weights.sharding).
Here the same is decided by the formula.
"""

from dataclasses import dataclass, replace
from typing import Any

from sluice_api.finetunejob import FineTuneJobSpec
from sluice_api.training import GradientCheckpointing, Method, Packing, Sharding
from sluice_trainer.data.estimate.memory import FLOAT32, Batch, Memory, Setting, memory_of, weight_bytes
from sluice_trainer.data.estimate.shape import ModelShape
from sluice_trainer.data.estimate.speed import Device

GPU_MOST_TOKENS = 8192
"""As train.trials.budget.MAX_TOKENS, which a test compares; that module takes seconds to import."""
SHARDED_BEYOND = 2 / 3
"""As train.weights.sharding.MAX_WEIGHTS_SHARE, likewise."""
CONTEXT_BYTES = 512 << 20
"""What CUDA's context, its libraries and gaps between tensors take beside torch's tensors: assumed, not measured."""


@dataclass(frozen=True)
class RowFacts:
    """What follows from the rows, once they are tokens."""

    rows: int
    tokens: int
    """Of all training rows, one pass."""
    loss_tokens: int
    longest: int
    """Tokens of the longest row; of a pair, both of its sides together."""
    steps: int
    epochs: float
    """Passes over the rows; a fraction when maxSteps ends before."""
    validation_tokens: int = 0
    is_preference: bool = False


@dataclass(frozen=True)
class Way:
    """How training goes about it on a GPU, and the memory that this takes."""

    setting: Setting
    batch: Batch
    memory: Memory

    @property
    def needed(self) -> int:
        """Bytes of a GPU, with those that are not torch's."""
        return self.memory.total + CONTEXT_BYTES


def chosen_way(shape: ModelShape, spec: FineTuneJobSpec, rows: RowFacts, available: int | None) -> Way:
    """How training will go about it, as train.trials.budget decides it on the GPU itself.

    The micro-batch is as large as is fast, halved until it fits. Activations are computed a second time if the longest
    row does not fit otherwise.
    """
    training = spec.training
    mean = rows.tokens / max(1, rows.rows)
    step_tokens = rows.tokens * rows.epochs / max(1, rows.steps) / spec.resources.all_gpus
    if training.micro_batch_size:
        most = int(max(rows.longest, training.micro_batch_size * mean))
    else:
        most = max(rows.longest, min(GPU_MOST_TOKENS, int(step_tokens) + 1))
    share = rows.loss_tokens / max(1, rows.tokens)
    ways = []
    for setting in _settings(shape, spec, available):
        tokens = most
        while True:
            is_packed = training.packing is Packing.AUTO and tokens > rows.longest
            batch = Batch(tokens, rows.longest, is_packed, max(1, round(share * tokens)))
            accumulating = replace(setting, accumulates=step_tokens > tokens)
            ways.append(Way(accumulating, batch, memory_of(shape, accumulating, batch)))
            if available is None or ways[-1].needed <= available:
                return ways[-1]
            if tokens == rows.longest or training.micro_batch_size:
                break
            tokens = max(rows.longest, tokens // 2)
    return ways[-1]


def least_way(shape: ModelShape, spec: FineTuneJobSpec, longest: int, available: int | None) -> Way:
    """What takes the least memory of all that the job leaves to the trainer: the longest row alone."""
    batch = Batch(longest, longest, loss_tokens=1)
    settings = [replace(setting, accumulates=False) for setting in _settings(shape, spec, available)]
    ways = [Way(setting, batch, memory_of(shape, setting, batch)) for setting in settings]
    return min(ways, key=lambda way: way.needed)


def _settings(shape: ModelShape, spec: FineTuneJobSpec, available: int | None) -> list[Setting]:
    """The settings that the trainer tries, in its order."""
    setting = Setting(
        method=spec.method,
        dtype_bytes=2 if spec.training.dtype == "bfloat16" else FLOAT32,
        has_dropout=float(spec.lora.dropout) > 0,
        processes=spec.resources.all_gpus,
    )
    setting = replace(setting, sharded=_is_sharded(shape, spec, setting, available))
    match spec.training.gradient_checkpointing:
        case GradientCheckpointing.NEVER:
            return [setting]
        case GradientCheckpointing.ALWAYS:
            return [replace(setting, checkpointing=True)]
    return [setting, replace(setting, checkpointing=True)]


def _is_sharded(shape: ModelShape, spec: FineTuneJobSpec, setting: Setting, available: int | None) -> bool:
    """Whether the model is sharded, as train.weights.sharding decides it on the GPUs themselves."""
    if setting.processes == 1 or spec.method is Method.QLORA or spec.training.sharding is Sharding.NEVER:
        return False
    if spec.training.sharding is Sharding.ALWAYS:
        return True
    needed = shape.weights * 4 * FLOAT32 if setting.is_full else weight_bytes(shape, setting)
    return available is not None and needed > SHARDED_BEYOND * available


def as_computed(spec: FineTuneJobSpec, device: Device | None) -> FineTuneJobSpec:
    """The job in float32 where the GPU has no instructions for bfloat16, which is what the trainer does."""
    if device is None or device.bfloat16:
        return spec
    return with_training(spec, dtype="float32")


def with_training(spec: FineTuneJobSpec, **changes: Any) -> FineTuneJobSpec:
    """The job with other settings of its training."""
    return spec.model_copy(update={"training": spec.training.model_copy(update=changes)})
