"""A model's output head: the hidden states that go into it, and what the model does to its output.

Models differ in what they do around their head: Gemma 2 caps its logits, Cohere and Granite scale them, MiniCPM scales
the hidden states. None of that is looked up by name. The model's own forward runs with a stand-in for the head: at
first to observe what it does to the head's output, and from then on to catch the hidden states.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sluice_trainer.train.fused_cross_entropy import LogitTransform
from sluice_trainer.train.weights.model import Model

LINEAR_AT, CAPPED_AT = 2.0**-10, 1e6
"""Outputs of the head at which a softcap is still linear, and at which it has reached its cap."""


@dataclass(frozen=True)
class FusedHead:
    """An output head whose logits fused_cross_entropy can compute, with what the model does to them."""

    linear: nn.Linear
    transform: LogitTransform


def hidden_states(model: Model, linear: nn.Linear, inputs: Mapping[str, Tensor]) -> Tensor:
    """Run the model up to its head; returns rows x positions x hidden size. No logits are computed."""
    caught: list[Tensor] = []

    def catch(hidden: Tensor) -> Tensor:
        caught.append(hidden)
        return hidden.new_empty(*hidden.shape[:-1], 0)

    with _stand_in(linear, catch):
        model(**inputs, use_cache=False)
    (hidden,) = caught
    return hidden


def logit_transform_of(model: Model, linear: nn.Linear, inputs: Mapping[str, Tensor]) -> LogitTransform | None:
    """Find what the model does to its head's output, by sending known numbers through it, one for each token.

    Returns None when that is neither a scale nor a softcap.
    """
    numbers = torch.linspace(-200, 200, linear.out_features, device=linear.weight.device)
    numbers[0], numbers[1] = LINEAR_AT, CAPPED_AT
    calls = 0

    def count(hidden: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return numbers.expand(*hidden.shape[:-1], -1)

    with _stand_in(linear, count):
        answer = model(**inputs, use_cache=False).logits[0, -1].float()
    if calls != 1 or answer.shape != numbers.shape:
        return None
    scale, most = answer[0].item() / LINEAR_AT, answer[1].item()
    scale = 1.0 if math.isclose(scale, 1, rel_tol=1e-6) else scale  # a softcap rounds it
    transform = LogitTransform(scale, None if most > scale * CAPPED_AT / 2 else most)
    return transform if torch.allclose(answer, transform.apply_(numbers.clone()), rtol=1e-5, atol=1e-5) else None


@contextmanager
def _stand_in(linear: nn.Linear, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While the block runs, calls of the layer go to another function."""
    linear.forward = forward  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        del linear.forward
