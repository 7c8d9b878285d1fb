"""The loss of a model: what goes into its output head is the model's own business, what comes out is chunked here.

Models differ in what they do around their head: Gemma 2 caps its logits, Cohere and Granite scale them, MiniCPM scales
what goes in. None of that is looked up. The model's own forward runs, with something else in the place of its head: at
first to see what it makes of the head's output, and from then on to catch what goes in.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sluice_api.reasons import Reason
from sluice_trainer import logs
from sluice_trainer.errors import StageError
from sluice_trainer.train.loss import Curve, cross_entropies
from sluice_trainer.train.model import Model, bare, compute_dtype, computing, measured

SLOPE_AT, CAP_AT = 2.0**-10, 1e6
"""Where the curve is still a straight line, and where it has ended."""
WINDOW = 16
"""Tokens before and after the first learnt one that the proof runs over."""
SAME_LOGITS = 1e-5
"""How far two losses of the very same logits may be apart, and of them a part."""
OWN_LOGITS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""The same, when each has logits of its own, by the dtype that the model computes in."""


@dataclass(frozen=True)
class Head:
    """An output head that cross_entropies can stand in for."""

    linear: nn.Linear
    curve: Curve


_PROVEN: WeakKeyDictionary[Model, Head] = WeakKeyDictionary()
"""The head of each model for which the lean loss is the model's own. Any other costs all its logits."""


def losses(model: Model, inputs: Mapping[str, Tensor], learnt: Tensor) -> Tensor:
    """Cross entropy of each learnt token that something predicts, row by row, in nats and float32.

    Args:
        model: Lean, if `prove` has found that it can be.
        inputs: What the model is called with; `input_ids` are rows x longest.
        learnt: bool, rows x longest: tokens with a loss.
    """
    predicting, targets = learnt[:, 1:], inputs["input_ids"][:, 1:]
    # Positions that predict nothing aren't given to the head at all, where the model can leave them out.
    keep: dict[str, Tensor] = {}
    if "logits_to_keep" in inspect.signature(bare(model).forward).parameters:
        columns = predicting.any(dim=0).nonzero().squeeze(1)
        keep = {"logits_to_keep": columns}
        predicting, targets = predicting[:, columns], targets[:, columns]
    used = slice(predicting.shape[1])
    head = _PROVEN.get(model)
    with computing(model):
        if head is None:
            logits = model(**inputs, **keep, use_cache=False).logits[:, used]
            return cross_entropy(logits[predicting].float(), targets[predicting], reduction="none")
        hidden = _into_head(model, head.linear, {**inputs, **keep})[:, used]
        return cross_entropies(hidden[predicting], head.linear, targets[predicting], head.curve)


def prove(model: Model, input_ids: Tensor, learnt: Tensor) -> None:
    """Find out, on a piece of one row, whether the model's loss can be lean. If so it is from then on.

    Args:
        input_ids: int64, 1 x length.
        learnt: bool, 1 x length, and somewhere true.

    Raises:
        StageError: ModelInvalid: what the model itself calls its loss is more than the cross entropy of its logits.
    """
    first = int(learnt[0, 1:].nonzero()[0]) + 1
    piece = slice(max(0, first - WINDOW), first + WINDOW)
    inputs, learnt = {"input_ids": input_ids[:, piece]}, learnt[:, piece]
    with measured(model), computing(model):
        own = _own_loss(model, inputs["input_ids"], learnt)
        why_not = _make_lean(model, inputs, learnt, own)
    model_type = bare(model).config.model_type
    if why_not:
        _PROVEN.pop(model, None)
        logs.warning("loss from full logits", model_type=model_type, reason=why_not)
    else:
        curve = _PROVEN[model].curve
        logs.info("lean loss", model_type=model_type, logits_scale=curve.scale, logits_cap=curve.cap)


def _own_loss(model: Model, input_ids: Tensor, learnt: Tensor) -> Tensor:
    """What the model itself says that the learnt tokens cost, summed."""
    predicting, targets = learnt[:, 1:], input_ids[:, 1:]
    labels = torch.cat([torch.full_like(input_ids[:, :1], -100), targets.masked_fill(~predicting, -100)], dim=1)
    output = model(input_ids=input_ids, labels=labels, use_cache=False)
    own = output.loss.float() * predicting.sum()
    plain = cross_entropy(output.logits[:, :-1][predicting].float(), targets[predicting], reduction="sum")
    if not _same(own, plain, SAME_LOGITS):
        raise StageError(
            Reason.MODEL_INVALID,
            f"What a model of type {bare(model).config.model_type} calls its loss is {own.item():.6g} for a piece of "
            f"the first row, but the cross entropy of its logits is {plain.item():.6g}, and that is what is trained. "
            "Turn its other loss off in config.json (of a mixture of experts: output_router_logits: false), or choose "
            "a model that predicts the next token and nothing else.",
        )
    return plain


def _make_lean(model: Model, inputs: Mapping[str, Tensor], learnt: Tensor, own: Tensor) -> str:
    """Make the model's loss lean, and see whether it is still the same; returns why that can't be, or nothing."""
    linear = bare(model).get_output_embeddings()
    if type(linear) is not nn.Linear:
        return f"its output head is of {type(linear)}, not a plain linear layer"
    if linear._forward_hooks or linear._forward_pre_hooks:
        return "its output head has hooks"
    curve = _curve(model, linear, inputs)
    if curve is None:
        return "what it makes of its head's output is neither a scale nor a softcap"
    _PROVEN[model] = Head(linear, curve)
    lean = losses(model, inputs, learnt).sum()
    if not _same(lean, own, OWN_LOGITS[compute_dtype(model)]):
        return f"the lean loss of a piece of the first row is {lean.item():.6g}, its own {own.item():.6g}"
    return ""


def _same(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Two losses; those that are no number end the training later, with a remedy of their own."""
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)


def _curve(model: Model, linear: nn.Linear, inputs: Mapping[str, Tensor]) -> Curve | None:
    """What the model makes of its head's output: known numbers go through it, one for each token it knows."""
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


def _into_head(model: Model, linear: nn.Linear, inputs: Mapping[str, Tensor]) -> Tensor:
    """What the model gives its head: rows x positions x hidden size. No logits are made of it."""
    caught: list[Tensor] = []

    def catch(hidden: Tensor) -> Tensor:
        caught.append(hidden)
        return hidden.new_empty(*hidden.shape[:-1], 0)

    with _instead_of(linear, catch):
        model(**inputs, use_cache=False)
    (hidden,) = caught
    return hidden


@contextmanager
def _instead_of(linear: nn.Linear, stand_in: Callable[[Tensor], Tensor]) -> Iterator[None]:
    linear.forward = stand_in  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        del linear.forward
