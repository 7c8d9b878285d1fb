"""Cross entropy without ever holding all logits: a few positions at a time, gradients included."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

CHUNK_BYTES = 160 * 2**20
"""For the logits of one chunk and what is worked out from them. Smaller ones would read the head more often."""


@dataclass(frozen=True)
class Curve:
    """What a model makes of its head's output, number by number: cap * tanh(scale * output / cap)."""

    scale: float = 1.0
    """Cohere's logit_scale; Granite's logits_scaling divides, so here it is the inverse."""
    cap: float | None = None
    """Gemma 2's final_logit_softcapping."""

    def bend_(self, output: Tensor) -> Tensor:
        """Turn the head's output into logits, in place."""
        if self.scale != 1:
            output.mul_(self.scale)
        return output if self.cap is None else output.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, logits: Tensor) -> Tensor | None:
        """How much each logit changes with the head's output; None where that is 1."""
        if self.cap is None:
            return None if self.scale == 1 else logits.new_tensor(self.scale)
        return logits.div(self.cap).square_().neg_().add_(1).mul_(self.scale)


STRAIGHT = Curve()


def cross_entropies(hidden: Tensor, head: nn.Linear, targets: Tensor, curve: Curve = STRAIGHT) -> Tensor:
    """Cross entropy of each position, in nats and float32.

    The gradients are worked out with the loss, chunk by chunk: with a frozen head that takes two products with it
    (the logits and the gradient of `hidden`), and what stays in memory is as large as `hidden`. Without gradients
    nothing of them is computed.

    Args:
        hidden: What goes into the head, positions x hidden size, in the head's dtype or under autocast.
        head: May be frozen or trained, with or without a bias.
        targets: int64, one for each position.
        curve: What the model does to the head's output.

    Raises:
        ValueError: in backward, when positions weigh differently and the head is trained: its gradients have been
            summed already.
    """
    bias: Tensor | None = head.bias
    inputs = hidden, head.weight, bias
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        inputs = hidden.to(dtype), head.weight.to(dtype), None if bias is None else bias.to(dtype)
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in inputs):
        return _CrossEntropies.apply(*inputs, targets, curve)  # type: ignore[no-any-return]
    return _chunk_by_chunk(*inputs, targets, curve, (False, False, False))[0]


class _CrossEntropies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, curve: Curve) -> Tensor:
        losses, *gradients = _chunk_by_chunk(hidden, weight, bias, targets, curve, ctx.needs_input_grad[:3])
        ctx.save_for_backward(*gradients)
        ctx.dtype = weight.dtype
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_losses: Tensor) -> tuple[Tensor | None, ...]:
        by_hidden, by_weight, by_bias = ctx.saved_tensors
        if (by_weight is not None or by_bias is not None) and not (by_losses == by_losses[0]).all():
            raise ValueError("the head is trained, so all positions must weigh the same")
        # In place, as a trained head's gradient is large; a second backward through the same loss is an error of
        # torch's, which sees that what was saved has changed.
        scaled = [(by_hidden, by_losses.unsqueeze(1)), (by_weight, by_losses[0]), (by_bias, by_losses[0])]
        found = (None if each is None else each.mul_(weight).to(ctx.dtype) for each, weight in scaled)
        return *found, None, None


def _chunk_by_chunk(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    curve: Curve,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The losses, and the gradients of their sum by each of the first three that is wanted: by weight and bias in
    float32."""
    losses = hidden.new_empty(len(hidden), dtype=torch.float32)
    by_hidden = torch.empty_like(hidden) if wanted[0] else None
    by_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
    by_bias = torch.zeros_like(bias, dtype=torch.float32) if wanted[2] and bias is not None else None
    for chunk in _chunks(len(hidden), weight, curve):
        gradients = None if by_hidden is None else by_hidden[chunk], by_weight, by_bias
        losses[chunk] = _chunk_losses(hidden[chunk], weight, bias, targets[chunk], curve, gradients)
    return losses, by_hidden, by_weight, by_bias


def _chunk_losses(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    curve: Curve,
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> Tensor:
    """The loss of each position of a chunk. What is wanted of the gradients is written (by hidden) or added to.

    A function of its own, so that all of a chunk is gone before the next one is begun.
    """
    by_hidden, by_weight, by_bias = gradients
    wanted = any(each is not None for each in gradients)
    logits = curve.bend_(linear(hidden, weight, bias).float())
    slope = curve.slope(logits) if wanted else None
    at_target, most = logits.gather(1, targets.unsqueeze(1)), logits.amax(dim=1, keepdim=True)
    powers = logits.sub_(most).exp_()
    total = powers.sum(dim=1, keepdim=True)
    losses = (total.log() + most - at_target).squeeze(1)
    if not wanted:
        return losses
    by_output = powers.div_(total)  # the probabilities, which less one at the target are the gradient
    by_output[torch.arange(len(targets), device=targets.device), targets] -= 1
    if slope is not None:
        by_output.mul_(slope)
    if by_bias is not None:
        by_bias += by_output.sum(dim=0)
    rounded = by_output.to(weight.dtype)
    if by_hidden is not None:
        torch.mm(rounded, weight, out=by_hidden)
    if by_weight is not None:
        _add_product_(by_weight, rounded.t(), hidden)
    return losses


def _chunks(positions: int, weight: Tensor, curve: Curve) -> Iterator[slice]:
    """As many positions at once as have room: float32 logits, their slope if they are capped, and a rounded copy."""
    each = 4 + (0 if curve.cap is None else 4) + (0 if weight.dtype == torch.float32 else weight.itemsize)
    size = max(1, CHUNK_BYTES // (each * len(weight)))
    return (slice(start, start + size) for start in range(0, positions, size))


def _add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a product to a sum in float32. Rounding each chunk's product to bfloat16 first would add up."""
    if left.is_cuda and left.dtype != total.dtype:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))
