"""Fused linear cross entropy: the output head and the loss in one, a tile of logits at a time, gradients included.

Never are all logits in memory.

A tile is some positions by some tokens. With l the logits of a position and t its target,

    loss = log(1 + sum of exp(l[v] - l[t]) over v != t).

So the sum can run over the tokens a block at a time, as FlashAttention runs over keys: it is kept relative to the
highest logit so far, and scaled down when a higher one comes. With p the probability of all tokens but the target, the
gradient with respect to l[t] is -p, and with respect to any other l[v] it is p times the share of exp(l[v]) in the sum.
p and the share are known only when all blocks have been seen: both factors are applied then.
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
"""Memory for the logits of one tile and for what is computed from them."""
TILE_POSITIONS = 4096
"""The most positions of a tile. Products of few positions are slower: by a fifth at 276 (docs/benchmarks/loss.md)."""


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to its head's output, elementwise, to get logits: cap * tanh(scale * output / cap)."""

    scale: float = 1.0
    """Cohere's logit_scale; Granite's logits_scaling divides, so here it is the inverse."""
    cap: float | None = None
    """Gemma 2's final_logit_softcapping."""

    def apply_(self, output: Tensor) -> Tensor:
        """Turn the head's output into logits, in place."""
        if self.scale != 1:
            output.mul_(self.scale)
        return output if self.cap is None else output.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, logits: Tensor) -> Tensor | float | None:
        """Derivative of each logit by the head's output; None where that is 1."""
        if self.cap is None:
            return None if self.scale == 1 else self.scale
        return logits.div(self.cap).square_().neg_().add_(1).mul_(self.scale)


IDENTITY = LogitTransform()


def fused_cross_entropy(
    hidden: Tensor, head: nn.Linear, targets: Tensor, transform: LogitTransform = IDENTITY
) -> Tensor:
    """Compute the cross entropy of each position, in nats and float32.

    The gradients are computed with the loss, tile by tile: with a frozen head that takes two products with it (the
    logits and the gradient of `hidden`), and what stays in memory is as large as `hidden` in float32. Without
    gradients nothing of them is computed.

    Args:
        hidden: Hidden states before the head, positions x hidden size, in the head's dtype or under autocast.
        head: The output head, frozen or trained, with or without a bias.
        targets: int64, one for each position. The loss of one that is not in the vocabulary is NaN.
        transform: What the model does to the head's output before it calls that logits.

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
        return _FusedCrossEntropy.apply(*inputs, targets, transform)  # type: ignore[no-any-return]
    hidden, weight, bias = inputs
    return _tile_by_tile(hidden, _Head(weight, bias, transform), targets, _Gradients())


class _FusedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, transform: LogitTransform
    ) -> Tensor:
        gradients = _Gradients(
            *(
                torch.zeros_like(each, dtype=torch.float32) if each is not None and wanted else None
                for each, wanted in zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
            )
        )
        losses = _tile_by_tile(hidden, _Head(weight, bias, transform), targets, gradients)
        ctx.save_for_backward(*gradients)
        ctx.dtype = weight.dtype
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        gradients = _Gradients(*ctx.saved_tensors)
        if gradients.head_is_trained and not (grad_losses == grad_losses[:1]).all():
            raise ValueError("the head is trained, so all positions must weigh the same")
        # In place, as a trained head's gradient is large; a second backward through the same loss is an error of
        # torch's, which sees that what was saved has changed.
        weights = grad_losses.unsqueeze(1), grad_losses[:1], grad_losses[:1]
        scaled = zip(gradients, weights, strict=True)
        found = (None if each is None else each.mul_(weight).to(ctx.dtype) for each, weight in scaled)
        return *found, None, None


class _Head(NamedTuple):
    weight: Tensor
    bias: Tensor | None
    transform: LogitTransform


class _Gradients(NamedTuple):
    """Gradients of the summed loss, in float32, accumulated in place from zeros; None where none is wanted."""

    grad_hidden: Tensor | None = None
    grad_weight: Tensor | None = None
    grad_bias: Tensor | None = None

    @property
    def wanted(self) -> bool:
        """Whether any of them is wanted."""
        return self.grad_hidden is not None or self.head_is_trained

    @property
    def head_is_trained(self) -> bool:
        """Whether weight or bias of the head is trained."""
        return self.grad_weight is not None or self.grad_bias is not None


def _tile_by_tile(hidden: Tensor, head: _Head, targets: Tensor, gradients: _Gradients) -> Tensor:
    """Compute the losses, and add to the gradients on the way."""
    losses = hidden.new_empty(len(hidden), dtype=torch.float32)
    positions, tokens = _tile(len(hidden), head, gradients)
    for rows in _slices(len(hidden), positions):
        grad_hidden = None if gradients.grad_hidden is None else gradients.grad_hidden[rows]
        chunk = _Chunk(hidden[rows], head, targets[rows], gradients._replace(grad_hidden=grad_hidden))
        for block in _slices(len(head.weight), tokens):
            chunk.see(block)
        losses[rows] = chunk.finish()
    return losses


def _tile(count: int, head: _Head, gradients: _Gradients) -> tuple[int, int]:
    """Choose a tile's size, positions by tokens, that TILE_BYTES hold.

    A logit takes float32, as much again for its slope if it is capped, and a rounded copy if the head is not float32.

    A trained head's gradients are sums over positions, each times its own scale, which is known once all its tokens are
    seen: there a tile is as wide as the vocabulary. In blocks of it, the logits would be computed twice.
    """
    narrow = head.weight.dtype != torch.float32
    each = 4 + (0 if head.transform.cap is None else 4) + (head.weight.itemsize if narrow else 0)
    room, vocabulary = TILE_BYTES // each, len(head.weight)
    if gradients.head_is_trained:
        return max(1, room // vocabulary), vocabulary
    chunks = max(1, math.ceil(count / TILE_POSITIONS))
    positions = max(1, math.ceil(count / chunks))
    return positions, max(1, room // positions)


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, length, size))


class _Chunk:
    """Some positions on their way through the vocabulary.

    What it keeps is positions x 1, in float32: the logit `at_target` and, of the other tokens seen so far, the highest
    logit (`highest`) and the sum of exp(logit - highest) (`total`).
    """

    def __init__(self, hidden: Tensor, head: _Head, targets: Tensor, gradients: _Gradients) -> None:
        self.hidden, self.head, self.targets, self.gradients = hidden, head, targets, gradients
        self.total = hidden.new_zeros((len(hidden), 1), dtype=torch.float32)
        self.highest = torch.full_like(self.total, torch.finfo(torch.float32).min)
        self.at_target = torch.full_like(self.total, math.nan)

    def see(self, block: slice) -> None:
        """Add a block of tokens to the sums and gradients. Its logits are freed when this returns."""
        weight, bias, transform = self.head
        grad_hidden, grad_weight, grad_bias = self.gradients
        weight = weight[block]
        logits = transform.apply_(linear(self.hidden, weight, None if bias is None else bias[block]).float())
        slope = transform.slope(logits) if self.gradients.wanted else None
        self._take_targets(logits, block.start)
        highest = torch.maximum(self.highest, logits.amax(dim=1, keepdim=True))
        kept = (self.highest - highest).exp_()
        powers = logits.sub_(highest).exp_()
        self.highest, self.total = highest, self.total.mul_(kept).add_(powers.sum(dim=1, keepdim=True))
        if slope is not None:
            powers.mul_(slope)
        if grad_hidden is not None:
            grad_hidden.mul_(kept)
            if weight.dtype == grad_hidden.dtype:
                grad_hidden.addmm_(powers, weight)  # needs no room for the product
            else:
                grad_hidden.add_(powers.to(weight.dtype) @ weight)
        # If the head is trained, all tokens are in this block: the scale is final.
        if grad_weight is not None:
            _add_product_(grad_weight, powers.t(), self.hidden * self._scale(), weight.dtype)
        if grad_bias is not None:
            grad_bias.addmv_(powers.t(), self._scale().squeeze(1))

    def _take_targets(self, logits: Tensor, first: int) -> None:
        """Keep the logits of the targets in this block, and mask them in it: `total` is of the other tokens."""
        place = (self.targets - first).unsqueeze(1)
        here = (place >= 0) & (place < logits.shape[1])
        place = place.clamp_(0, logits.shape[1] - 1)
        found = logits.gather(1, place)
        self.at_target = torch.where(here, found, self.at_target)
        logits.scatter_(1, place, found.masked_fill_(here, -math.inf))

    def finish(self) -> Tensor:
        """Return the losses once all of the vocabulary is seen. The gradients get their scale and the target's part."""
        weight, _, transform = self.head
        grad_hidden, grad_weight, grad_bias = self.gradients
        if self.gradients.wanted:
            slope = transform.slope(self.at_target)
            grad_target = self._missed_probability().neg_().mul_(1 if slope is None else slope)
            if grad_hidden is not None:
                grad_hidden.mul_(self._scale()).addcmul_(weight[self.targets], grad_target)
            if grad_weight is not None:
                grad_weight.index_add_(0, self.targets, self.hidden * grad_target)
            if grad_bias is not None:
                grad_bias.index_add_(0, self.targets, grad_target.squeeze(1))
        losses = softplus(self._log_odds_against_target())
        # An infinite logit is an error, as with full logits; it does not make its target certain.
        return losses.masked_fill_(self.at_target == math.inf, math.nan).squeeze(1)

    def _log_odds_against_target(self) -> Tensor:
        """Log of the odds against the target: logsumexp of all other logits, minus the target's."""
        return self.total.log().add_(self.highest).sub_(self.at_target)

    def _missed_probability(self) -> Tensor:
        """The probability of all tokens but the target."""
        return self._log_odds_against_target().sigmoid_()

    def _scale(self) -> Tensor:
        """Factor that turns exp(logit - highest) of any other token into the gradient with respect to its logit."""
        return self._missed_probability().div_(self.total)


def _add_product_(total: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype) -> None:
    """Add left @ right to a float32 sum that is as large as the head, without another tensor of that size.

    A GPU multiplies in the head's dtype; a CPU in float32, which is faster there than to add a rounded product.
    """
    if total.is_cuda and dtype != total.dtype:
        torch.addmm(total, left.to(dtype), right.to(dtype), out_dtype=total.dtype, out=total)
    else:
        total.addmm_(left, right)
