"""What goes into a model's output head, and what the model makes of its output.

Models differ in what they do around their head: Gemma 2 caps its logits, Cohere and Granite scale them, MiniCPM scales
what goes in. None of that is looked up. The model's own forward runs, with something else in the place of its head: at
first to see what it makes of the head's output, and from then on to catch what goes in.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sluice_trainer.train.loss import Curve
from sluice_trainer.train.weights.model import Model

SLOPE_AT, CAP_AT = 2.0**-10, 1e6
"""Where the curve is still a straight line, and where it has ended."""


@dataclass(frozen=True)
class Head:
    """An output head that cross_entropies can stand in for."""

    linear: nn.Linear
    curve: Curve


PROVEN: WeakKeyDictionary[Model, Head] = WeakKeyDictionary()
"""The head of each model for which the lean loss is the model's own (lean.py). Any other costs all its logits."""


def into_head(model: Model, linear: nn.Linear, inputs: Mapping[str, Tensor]) -> Tensor:
    """What the model gives its head: rows x positions x hidden size. No logits are made of it."""
    caught: list[Tensor] = []

    def catch(hidden: Tensor) -> Tensor:
        caught.append(hidden)
        return hidden.new_empty(*hidden.shape[:-1], 0)

    with _instead_of(linear, catch):
        model(**inputs, use_cache=False)
    (hidden,) = caught
    return hidden


def curve_of(model: Model, linear: nn.Linear, inputs: Mapping[str, Tensor]) -> Curve | None:
    """What the model makes of its head's output: known numbers go through it, one for each token it knows.

    None when that is neither a scale nor a softcap.
    """
    numbers = torch.linspace(-200, 200, linear.out_features, device=linear.weight.device)
    numbers[0], numbers[1] = SLOPE_AT, CAP_AT
    calls = 0

    def count(hidden: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return numbers.expand(*hidden.shape[:-1], -1)

    with _instead_of(linear, count):
        answer = model(**inputs, use_cache=False).logits[0, -1].float()
    if calls != 1 or answer.shape != numbers.shape:
        return None
    scale, most = answer[0].item() / SLOPE_AT, answer[1].item()
    scale = 1.0 if math.isclose(scale, 1, rel_tol=1e-6) else scale  # a softcap rounds it
    curve = Curve(scale, None if most > scale * CAP_AT / 2 else most)
    return curve if torch.allclose(answer, curve.bend_(numbers.clone()), rtol=1e-5, atol=1e-5) else None


@contextmanager
def _instead_of(linear: nn.Linear, stand_in: Callable[[Tensor], Tensor]) -> Iterator[None]:
    linear.forward = stand_in  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        del linear.forward
