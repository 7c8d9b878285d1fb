"""How rows go into micro-batches on this machine: packed if that is exact, and as large as memory and speed allow.

Neither changes which rows a step has, nor the result beyond rounding (and what dropout draws).
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch

from sluice_api.training import GradientCheckpointing, Packing, Training
from sluice_trainer import logs
from sluice_trainer.prepared import TokenRow, TokenRows
from sluice_trainer.train.batches import MicroBatch
from sluice_trainer.train.group import Group
from sluice_trainer.train.loss import TokenLoss
from sluice_trainer.train.packing import Batching
from sluice_trainer.train.trials.exact import why_not_packed
from sluice_trainer.train.trials.memory import (
    MEASURED,
    Cost,
    cost_through,
    free_bytes,
    free_gpu_bytes,
    most_of,
    peak_bytes,
)
from sluice_trainer.train.weights.model import Model

MOST_TOKENS = {"cpu": 512, "cuda": 8192}
"""Where a larger micro-batch is no faster any more: attention's work grows with its square, masked or not.

Measured on a CPU only: 512 is 11 % faster than 1,024, and as fast as 256, on layers of SmolLM-135M.
"""

Fits = Callable[[int], bool]
"""Whether a micro-batch of so many tokens fits into memory."""


def batching_for(
    loss: TokenLoss, rows: TokenRows, training: Training, group: Group, recorded: int | None = None
) -> Batching:
    """Decide, all processes alike; may turn gradient checkpointing on in the model.

    Args:
        recorded: The budget that the training began with. It is kept as long as it fits: the bits depend on it.
    """
    packed = training.packing is not Packing.NEVER and _packs(loss, rows, group)
    longest = max(rows.sizes(range(len(rows)), packed=packed))
    most = longest if training.micro_batch_size else recorded or MOST_TOKENS[group.device.type]
    # A process that tries in vain leaves the others waiting in the middle of what they do together.
    measure = tried if group.device.type == "cuda" and not group.shares_model else estimated

    def fits() -> Fits:
        here = measure(loss, rows, group, packed=packed)
        return lambda tokens: group.all_agree(here(tokens))

    recomputes = training.gradient_checkpointing
    if recomputes is GradientCheckpointing.ALWAYS:
        _recompute(loss.model, "the job says so")
    tokens = largest(fits(), longest, most)
    if tokens is None and recomputes is GradientCheckpointing.AUTO:
        _recompute(loss.model, f"the longest row, {longest} tokens, does not fit without it")
        tokens = largest(fits(), longest, most)
    if tokens is None:
        logs.warning("the longest row may not fit into memory", tokens=longest)
        tokens = longest
    logs.info("micro-batches", packed=packed, tokens=tokens, rows=training.micro_batch_size)
    return Batching(packed, tokens, training.micro_batch_size)


def _packs(loss: TokenLoss, rows: TokenRows, group: Group) -> bool:
    why = why_not_packed(loss, rows, group.device)
    packed = group.all_agree(why is None)
    if not packed:
        logs.warning("rows are padded, not packed", why=why or "another process says so")
    return packed


def _recompute(model: Model, why: str) -> None:
    logs.warning("gradient checkpointing is on", why=why)
    model.gradient_checkpointing_enable({"use_reentrant": False})


def largest(fits: Fits, longest: int, most: int) -> int | None:
    """The most tokens, halved until they fit; None when the longest row alone does not.

    By halves, so that small differences in what is free, from one attempt to the next, seldom matter.
    """
    if not fits(longest):
        return None
    while most > longest and not fits(most):
        most //= 2
    return max(most, longest)


def estimated(loss: TokenLoss, rows: TokenRows, group: Group, *, packed: bool) -> Fits:
    """From three small micro-batches, for a process that would be killed if it tried; from one where that is enough."""
    free = free_gpu_bytes(group.device) if group.device.type == "cuda" else free_bytes(loss.model, group.rank.gpus)
    cost = lru_cache(maxsize=1)(lambda: estimated_cost(loss, rows, group, packed=packed))
    if group.shares_model:
        cost()  # together with the others, whether it is needed here or there
    most = most_of(MEASURED[-1], measured_peak(loss, rows, group, MEASURED[-1], packed=packed))
    return lambda tokens: most.of(max(tokens, MEASURED[-1])) <= free or cost().of(tokens) <= free


def estimated_cost(loss: TokenLoss, rows: TokenRows, group: Group, *, packed: bool) -> Cost:
    """What a micro-batch takes by its tokens, from three small ones."""
    return cost_through({tokens: measured_peak(loss, rows, group, tokens, packed=packed) for tokens in MEASURED})


def measured_peak(loss: TokenLoss, rows: TokenRows, group: Group, tokens: int, *, packed: bool) -> int:
    """Bytes that a micro-batch of two rows takes."""
    batch = example(rows, tokens, tokens // 2, group, packed=packed)
    return peak_bytes(loss.model, lambda: forward_and_backward(loss, batch))


def tried(loss: TokenLoss, rows: TokenRows, group: Group, *, packed: bool) -> Fits:
    """By doing it, where too much is an exception."""
    longest = rows.longest_sequence

    def fits(tokens: int) -> bool:
        try:
            forward_and_backward(loss, example(rows, tokens, longest, group, packed=packed))
        except torch.OutOfMemoryError:
            return False
        finally:
            torch.cuda.empty_cache()
        return True

    return fits


def example(rows: TokenRows, tokens: int, longest: int, group: Group, *, packed: bool) -> MicroBatch:
    """A micro-batch of so many tokens in rows of the greatest length, all of them in the loss: as bad as it can get."""
    lengths = [longest] * (tokens // longest) + ([tokens % longest] if packed and tokens % longest else [])
    made = [TokenRow(np.resize(rows.input_ids, length), np.ones(length, np.uint8)) for length in lengths]
    return MicroBatch.packed(made, group.device) if packed else MicroBatch.of(made, group.device)


def forward_and_backward(loss: TokenLoss, batch: MicroBatch) -> None:
    """As in training, but no gradient stays, whatever happens."""
    try:
        loss.summed(batch).backward()
    finally:
        loss.model.zero_grad()
