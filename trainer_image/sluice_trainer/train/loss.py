"""Cross entropy without ever holding all logits: a tile of them at a time, gradients included.

A tile is some positions by some tokens. With l the logits of a position and t its target,

    loss = log(1 + sum of exp(l[v] - l[t]) over v != t),

so that the tokens can be gone through a block at a time, as FlashAttention goes through keys: the sum is kept relative
to the highest logit so far, and scaled down when a higher one comes. With p the probability that the model misses the
target, the gradient by l[t] is -p, and by any other l[v] it is p times the share of exp(l[v]) in the sum. The share
is known when all blocks have been seen: p and the sum are left out until then.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, softplus

TILE_BYTES = 160 * 2**20
"""For the logits of one tile and what is worked out from them."""
TILE_POSITIONS = 4096
"""At most. A product with few positions takes longer for each: at 276 of them a fifth (docs/benchmarks/loss.md)."""


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

    def slope(self, logits: Tensor) -> Tensor | float | None:
        """How much each logit changes with the head's output; None where that is 1."""
        if self.cap is None:
            return None if self.scale == 1 else self.scale
        return logits.div(self.cap).square_().neg_().add_(1).mul_(self.scale)


STRAIGHT = Curve()


def cross_entropies(hidden: Tensor, head: nn.Linear, targets: Tensor, curve: Curve = STRAIGHT) -> Tensor:
    """Cross entropy of each position, in nats and float32.

    The gradients are worked out with the loss, tile by tile: with a frozen head that takes two products with it (the
    logits and the gradient of `hidden`), and what stays in memory is as large as `hidden` in float32. Without
    gradients nothing of them is computed.

    Args:
        hidden: What goes into the head, positions x hidden size, in the head's dtype or under autocast.
        head: May be frozen or trained, with or without a bias.
        targets: int64, one for each position. The loss of one that is not in the vocabulary is NaN.
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
    hidden, weight, bias = inputs
    return _tile_by_tile(hidden, _Head(weight, bias, curve), targets, _Gradients())


class _CrossEntropies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, curve: Curve) -> Tensor:
        gradients = _Gradients(
            *(
                torch.zeros_like(each, dtype=torch.float32) if each is not None and wanted else None
                for each, wanted in zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
            )
        )
        losses = _tile_by_tile(hidden, _Head(weight, bias, curve), targets, gradients)
        ctx.save_for_backward(*gradients)
        ctx.dtype = weight.dtype
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_losses: Tensor) -> tuple[Tensor | None, ...]:
        gradients = _Gradients(*ctx.saved_tensors)
        if gradients.by_head and not (by_losses == by_losses[:1]).all():
            raise ValueError("the head is trained, so all positions must weigh the same")
        # In place, as a trained head's gradient is large; a second backward through the same loss is an error of
        # torch's, which sees that what was saved has changed.
        weights = by_losses.unsqueeze(1), by_losses[:1], by_losses[:1]
        scaled = zip(gradients, weights, strict=True)
        found = (None if each is None else each.mul_(weight).to(ctx.dtype) for each, weight in scaled)
        return *found, None, None


class _Head(NamedTuple):
    weight: Tensor
    bias: Tensor | None
    curve: Curve


class _Gradients(NamedTuple):
    """Of the sum of the losses, in float32; None where none is wanted. Zeros at first, they are added to."""

    by_hidden: Tensor | None = None
    by_weight: Tensor | None = None
    by_bias: Tensor | None = None

    @property
    def wanted(self) -> bool:
        """Any of them."""
        return self.by_hidden is not None or self.by_head

    @property
    def by_head(self) -> bool:
        """Whether the head is trained."""
        return self.by_weight is not None or self.by_bias is not None


def _tile_by_tile(hidden: Tensor, head: _Head, targets: Tensor, gradients: _Gradients) -> Tensor:
    """The losses; the gradients are worked out on the way."""
    losses = hidden.new_empty(len(hidden), dtype=torch.float32)
    positions, tokens = _tile(len(hidden), head, gradients)
    for rows in _slices(len(hidden), positions):
        by_hidden = None if gradients.by_hidden is None else gradients.by_hidden[rows]
        chunk = _Chunk(hidden[rows], head, targets[rows], gradients._replace(by_hidden=by_hidden))
        for block in _slices(len(head.weight), tokens):
            chunk.see(block)
        losses[rows] = chunk.finish()
    return losses


def _tile(count: int, head: _Head, gradients: _Gradients) -> tuple[int, int]:
    """How many positions by how many tokens have room: float32 logits, their slope if they are capped, a rounded copy.

    A trained head's gradients are sums over positions, each at its rate, which is known once all its tokens are seen:
    there a tile is as wide as the vocabulary. In blocks of it, the logits would be made twice.
    """
    narrow = head.weight.dtype != torch.float32
    each = 4 + (0 if head.curve.cap is None else 4) + (head.weight.itemsize if narrow else 0)
    room, vocabulary = TILE_BYTES // each, len(head.weight)
    if gradients.by_head:
        return max(1, room // vocabulary), vocabulary
    chunks = max(1, math.ceil(count / TILE_POSITIONS))
    positions = max(1, math.ceil(count / chunks))
    return positions, max(1, room // positions)


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, length, size))


class _Chunk:
    """Some positions on their way through the vocabulary.

    What it keeps is positions x 1, in float32: the logit `at_target` and, of the other tokens seen so far, the highest
    logit (`most`) and the sum of exp(logit - most) (`total`).
    """

    def __init__(self, hidden: Tensor, head: _Head, targets: Tensor, gradients: _Gradients) -> None:
        self.hidden, self.head, self.targets, self.gradients = hidden, head, targets, gradients
        self.total = hidden.new_zeros((len(hidden), 1), dtype=torch.float32)
        self.most = torch.full_like(self.total, torch.finfo(torch.float32).min)
        self.at_target = torch.full_like(self.total, math.nan)

    def see(self, block: slice) -> None:
        """Add what a block of tokens comes to. Its logits are gone when this returns, before there are others."""
        weight, bias, curve = self.head
        by_hidden, by_weight, by_bias = self.gradients
        weight = weight[block]
        logits = curve.bend_(linear(self.hidden, weight, None if bias is None else bias[block]).float())
        slope = curve.slope(logits) if self.gradients.wanted else None
        self._take_targets(logits, block.start)
        most = torch.maximum(self.most, logits.amax(dim=1, keepdim=True))
        kept = (self.most - most).exp_()
        powers = logits.sub_(most).exp_()
        self.most, self.total = most, self.total.mul_(kept).add_(powers.sum(dim=1, keepdim=True))
        if slope is not None:
            powers.mul_(slope)
        if by_hidden is not None:
            by_hidden.mul_(kept)
            if weight.dtype == by_hidden.dtype:
                by_hidden.addmm_(powers, weight)  # needs no room for the product
            else:
                by_hidden.add_(powers.to(weight.dtype) @ weight)
        # If the head is trained, all tokens are in this block: the rate is final.
        if by_weight is not None:
            _add_product_(by_weight, powers.t(), self.hidden * self._rate(), weight.dtype)
        if by_bias is not None:
            by_bias.addmv_(powers.t(), self._rate().squeeze(1))

    def _take_targets(self, logits: Tensor, first: int) -> None:
        """Keep the logits of those targets that are among a block's, and let them count for nothing there."""
        place = (self.targets - first).unsqueeze(1)
        here = (place >= 0) & (place < logits.shape[1])
        place = place.clamp_(0, logits.shape[1] - 1)
        found = logits.gather(1, place)
        self.at_target = torch.where(here, found, self.at_target)
        logits.scatter_(1, place, found.masked_fill_(here, -math.inf))

    def finish(self) -> Tensor:
        """The losses, when all of the vocabulary has been seen. The gradients get what they still lack."""
        weight, _, curve = self.head
        by_hidden, by_weight, by_bias = self.gradients
        if self.gradients.wanted:
            slope = curve.slope(self.at_target)
            by_target = self._missed().neg_().mul_(1 if slope is None else slope)
            if by_hidden is not None:
                by_hidden.mul_(self._rate()).addcmul_(weight[self.targets], by_target)
            if by_weight is not None:
                by_weight.index_add_(0, self.targets, self.hidden * by_target)
            if by_bias is not None:
                by_bias.index_add_(0, self.targets, by_target.squeeze(1))
        losses = softplus(self._behind())
        # An infinite logit is an error, as it is to full logits, and no target that is as good as certain.
        return losses.masked_fill_(self.at_target == math.inf, math.nan).squeeze(1)

    def _behind(self) -> Tensor:
        """By how much the target's logit is less than what all others come to."""
        return self.total.log().add_(self.most).sub_(self.at_target)

    def _missed(self) -> Tensor:
        """The probability of all tokens but the target."""
        return self._behind().sigmoid_()

    def _rate(self) -> Tensor:
        """The gradient by any other token's logit is this times its part of the total."""
        return self._missed().div_(self.total)


def _add_product_(total: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype) -> None:
    """Add a product to a sum that is as large as the head, in float32, without another copy of it.

    A GPU makes the product of numbers in the head's dtype; a CPU in float32, faster than it could add a rounded one.
    """
    if total.is_cuda and dtype != total.dtype:
        torch.addmm(total, left.to(dtype), right.to(dtype), out_dtype=total.dtype, out=total)
    else:
        total.addmm_(left, right)
