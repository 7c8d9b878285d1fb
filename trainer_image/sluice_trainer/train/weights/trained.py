"""The trained weights as plain tensors: each whole, or this process's shard of it."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from sluice_trainer.train.group import Group
from sluice_trainer.train.weights.model import Model, trainable
from sluice_trainer.train.weights.sharding import is_sharded, local_shard


class TrainedWeights:
    """The weights that the optimizer changes, and their gradients over the whole group."""

    def __init__(self, model: Model, group: Group) -> None:
        self._group = group
        self._of_model = trainable(model)
        self.are_sharded = any(is_sharded(weight) for weight in self._of_model.values())
        self.tensors = {name: _plain(weight) for name, weight in self._of_model.items()}
        """By their names in the model; they share its memory."""

    def sum_gradients_(self, loss_sum: Tensor) -> None:
        """Replace gradients and loss by their sums over all processes. A process without rows adds zeros."""
        if self._group.rank.size == 1:
            return
        if self.are_sharded:
            for name, weight in self._of_model.items():  # the backward passes have summed these already
                self.tensors[name].grad = None if weight.grad is None else local_shard(weight.grad)
                weight.grad = None
            self._group.all_reduce_sum_(loss_sum)
            return
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in self.tensors.values()]
        everything = torch.cat([*(gradient.flatten() for gradient in gradients), loss_sum.reshape(1)])
        self._group.all_reduce_sum_(everything)
        *sums, loss = everything.split([*(weight.numel() for weight in self.tensors.values()), 1])
        for weight, gradient in zip(self.tensors.values(), sums, strict=True):
            weight.grad = gradient.view_as(weight)
        loss_sum.copy_(loss.squeeze())

    def clip_gradients_(self, max_norm: float) -> Tensor:
        """Clip gradients to a norm, unless that is 0. Returns their norm before, over all weights."""
        gradients = [weight.grad for weight in self.tensors.values() if weight.grad is not None]
        norm = get_total_norm(gradients)
        if self.are_sharded:
            square = norm**2
            self._group.all_reduce_sum_(square)
            norm = square.sqrt()
        clip_grads_with_norm_(self.tensors.values(), max_norm or math.inf, norm)
        return norm


def _plain(weight: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(local_shard(weight.detach())) if is_sharded(weight) else weight
