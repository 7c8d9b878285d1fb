"""The token budget of a micro-batch on this machine: as large as memory and speed allow; packed, if that is exact.

This changes neither the rows of a step, nor the result beyond rounding (and what dropout draws).
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch

from sluice_api.training import GradientCheckpointing, Packing, Training
from sluice_trainer import logs
from sluice_trainer.context import rope_boundary
from sluice_trainer.token_rows import TokenRow, TokenRows
from sluice_trainer.train.batches import MicroBatch
from sluice_trainer.train.group import Group
from sluice_trainer.train.loss import TokenLoss
from sluice_trainer.train.packing import Batching
from sluice_trainer.train.trials.memory import (
    MEASURED_TOKENS,
    Cost,
    fit_cost,
    free_bytes,
    free_gpu_bytes,
    peak_bytes,
    upper_bound,
)
from sluice_trainer.train.trials.packing_check import packing_obstacle
from sluice_trainer.train.weights.model import Model, bare

MAX_TOKENS = {"cpu": 512, "cuda": 8192}
"""The size beyond which a larger micro-batch is not faster: attention grows with its square, masked or not.

Measured on a CPU only: 512 is 11 % faster than 1,024, and as fast as 256, on layers of SmolLM-135M.
"""

_TRIED_TOKENS = 2048
"""A pack of so many tokens takes little memory without gradients; twice the longest row takes about what that does."""

Fits = Callable[[int], bool]
"""Whether a micro-batch of so many tokens fits into memory."""


def batching_for(
    loss: TokenLoss, rows: TokenRows, training: Training, group: Group, recorded: int | None = None
) -> Batching:
    """Decide how rows become micro-batches; all processes decide alike. May turn on gradient checkpointing.

    Args:
        loss: The model and its loss.
        rows: The training rows.
        training: The job's settings.
        group: This process and its peers.
        recorded: The token budget of the first attempt. It is kept as long as it fits: the bits depend on it.
    """
    boundary = rope_boundary(bare(loss.model).config.get_text_config().to_dict())
    packed = training.packing is not Packing.NEVER and _can_pack(loss, rows, training, group, boundary)
    longest = max(rows.sizes(range(len(rows)), packed=packed))
    most = longest if training.micro_batch_size else recorded or MAX_TOKENS[group.device.type]
    # With a sharded model, a process that runs out of memory would leave the others waiting in a collective.
    measure = fits_by_trial if group.device.type == "cuda" and not group.shares_model else fits_by_estimate

    def fits() -> Fits:
        here = measure(loss, rows, group, packed=packed)
        return lambda tokens: group.all_agree(here(tokens))

    checkpointing = training.gradient_checkpointing
    if checkpointing is GradientCheckpointing.ALWAYS:
        _enable_gradient_checkpointing(loss.model, "the job says so")
    tokens = largest_fitting(fits(), longest, most)
    if tokens is None and checkpointing is GradientCheckpointing.AUTO:
        _enable_gradient_checkpointing(loss.model, f"the longest row, {longest} tokens, does not fit without it")
        tokens = largest_fitting(fits(), longest, most)
    if tokens is None:
        logs.warning("the longest row may not fit into memory", tokens=longest)
        tokens = longest
    logs.info("micro-batches", packed=packed, tokens=tokens, rows=training.micro_batch_size)
    return Batching(packed, tokens, training.micro_batch_size, boundary)


def _can_pack(loss: TokenLoss, rows: TokenRows, training: Training, group: Group, boundary: int | None) -> bool:
    longest = rows.longest_sequence
    if training.micro_batch_size:
        most = training.micro_batch_size * longest  # which has to fit with gradients too
    else:
        most = min(max(MAX_TOKENS[group.device.type], longest), max(2 * longest, _TRIED_TOKENS))
    why = packing_obstacle(loss, rows, group.device, most, boundary)
    packed = group.all_agree(why is None)
    if not packed:
        logs.warning("rows are padded, not packed", why=why or "another process says so")
    return packed


def _enable_gradient_checkpointing(model: Model, why: str) -> None:
    logs.warning("gradient checkpointing is on", why=why)
    model.gradient_checkpointing_enable({"use_reentrant": False})


def largest_fitting(fits: Fits, longest: int, most: int) -> int | None:
    """Halve the tokens until they fit; None if the longest row alone does not.

    Halving makes it rare that a small difference in free memory, from one attempt to the next, changes the result.
    """
    if not fits(longest):
        return None
    while most > longest and not fits(most):
        most //= 2
    return max(most, longest)


def fits_by_estimate(loss: TokenLoss, rows: TokenRows, group: Group, *, packed: bool) -> Fits:
    """Estimate from three small micro-batches, for a process that would be killed if it tried; one may be enough."""
    free = free_gpu_bytes(group.device) if group.device.type == "cuda" else free_bytes(loss.model, group.rank.gpus)
    cost = lru_cache(maxsize=1)(lambda: estimated_cost(loss, rows, group, packed=packed))
    if group.shares_model:
        cost()  # all processes of a sharded model measure together, even if only one needs it
    most = upper_bound(MEASURED_TOKENS[-1], measured_peak(loss, rows, group, MEASURED_TOKENS[-1], packed=packed))
    return lambda tokens: most.of(max(tokens, MEASURED_TOKENS[-1])) <= free or cost().of(tokens) <= free


def estimated_cost(loss: TokenLoss, rows: TokenRows, group: Group, *, packed: bool) -> Cost:
    """Fit the memory of micro-batches by three small ones."""
    return fit_cost({tokens: measured_peak(loss, rows, group, tokens, packed=packed) for tokens in MEASURED_TOKENS})


def measured_peak(loss: TokenLoss, rows: TokenRows, group: Group, tokens: int, *, packed: bool) -> int:
    """Measure the bytes that a micro-batch of two rows takes."""
    batch = worst_micro_batch(rows, tokens, tokens // 2, group, packed=packed)
    return peak_bytes(loss.model, lambda: forward_and_backward(loss, batch))


def fits_by_trial(loss: TokenLoss, rows: TokenRows, group: Group, *, packed: bool) -> Fits:
    """Try each size on the GPU, where too much memory is an exception."""
    longest = rows.longest_sequence

    def fits(tokens: int) -> bool:
        try:
            forward_and_backward(loss, worst_micro_batch(rows, tokens, longest, group, packed=packed))
        except torch.OutOfMemoryError:
            return False
        finally:
            torch.cuda.empty_cache()
        return True

    return fits


def worst_micro_batch(rows: TokenRows, tokens: int, longest: int, group: Group, *, packed: bool) -> MicroBatch:
    """A micro-batch of so many tokens, in rows as long as the longest and all in the loss: it takes the most memory."""
    lengths = [longest] * (tokens // longest) + ([tokens % longest] if packed and tokens % longest else [])
    some = rows.store.input_ids[:longest]
    made = [TokenRow(np.resize(some, length), np.ones(length, np.uint8)) for length in lengths]
    return MicroBatch.packed(made, group.device) if packed else MicroBatch.of(made, group.device)


def forward_and_backward(loss: TokenLoss, batch: MicroBatch) -> None:
    """Do both passes as in training, and drop the gradients, also after an error."""
    try:
        loss.summed(batch).backward()
    finally:
        loss.model.zero_grad()
