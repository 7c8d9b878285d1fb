"""What is trained, as plain tensors: each weight whole, or this process's part of it."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from sluice_trainer.train.group import Group
from sluice_trainer.train.weights.model import Model, trainable
from sluice_trainer.train.weights.sharding import is_part, local


class TrainedWeights:
    """The weights that the optimizer changes, and their gradients over the whole group."""

    def __init__(self, model: Model, group: Group) -> None:
        self._group = group
        self._of_model = trainable(model)
        self.are_parts = any(is_part(weight) for weight in self._of_model.values())
        self.tensors = {name: _part(weight) for name, weight in self._of_model.items()}
        """By their names in the model, in whose memory they are."""

    def sum_gradients_(self, loss_sum: Tensor) -> None:
        """Replace gradients and loss by their sums over all processes. Who had no rows adds zeros."""
        if self._group.rank.size == 1:
            return
        if self.are_parts:
            for name, weight in self._of_model.items():  # the backward passes have summed these already
                self.tensors[name].grad = None if weight.grad is None else local(weight.grad)
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

    def clip_gradients_(self, most: float) -> Tensor:
        """Scale gradients down to a norm, unless that is 0; returns the norm that they had together."""
        gradients = [weight.grad for weight in self.tensors.values() if weight.grad is not None]
        norm = get_total_norm(gradients)
        if self.are_parts:
            square = norm**2
            self._group.all_reduce_sum_(square)
            norm = square.sqrt()
        clip_grads_with_norm_(self.tensors.values(), most or math.inf, norm)
        return norm


def _part(weight: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(local(weight.detach())) if is_part(weight) else weight
