"""Whether a model's loss can be had without all its logits: tried on a piece of one row, before step 0."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sluice_api.reasons import Reason
from sluice_trainer import logs
from sluice_trainer.errors import StageError
from sluice_trainer.train.batches import MicroBatch, summed_loss
from sluice_trainer.train.head import PROVEN, Head, curve_of
from sluice_trainer.train.weights.model import Model, bare, compute_dtype, computing, measured

WINDOW = 16
"""Tokens before and after the first loss token that the proof runs over."""
SAME_LOGITS = 1e-5
"""How far two losses of the very same logits may be apart, and of them a part."""
OWN_LOGITS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""The same, when each has logits of its own, by the dtype that the model computes in."""


def prove(model: Model, input_ids: Tensor, loss_mask: Tensor) -> None:
    """Find out, on a piece of one row, whether the model's loss can be lean. If so it is from then on.

    Args:
        input_ids: int64, 1 x length.
        loss_mask: bool, 1 x length, and somewhere true.

    Raises:
        StageError: ModelInvalid: what the model itself calls its loss is more than the cross entropy of its logits.
    """
    first = int(loss_mask[0, 1:].nonzero()[0]) + 1
    around = slice(max(0, first - WINDOW), first + WINDOW)
    piece = MicroBatch(input_ids[:, around], loss_mask[:, around])
    with measured(model), computing(model):
        why_not = _make_lean(model, piece, _own_loss(model, piece))
    model_type = bare(model).config.model_type
    if why_not:
        PROVEN.pop(model, None)
        logs.warning("loss from full logits", model_type=model_type, reason=why_not)
    else:
        curve = PROVEN[model].curve
        logs.info("lean loss", model_type=model_type, logits_scale=curve.scale, logits_cap=curve.cap)


def _own_loss(model: Model, piece: MicroBatch) -> Tensor:
    """The model's own loss over the loss tokens, summed."""
    input_ids, predicting, targets = piece.input_ids, piece.loss_mask[:, 1:], piece.input_ids[:, 1:]
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


def _make_lean(model: Model, piece: MicroBatch, own: Tensor) -> str:
    """Make the model's loss lean, and see whether it is still the same; returns why that can't be, or nothing."""
    linear = bare(model).get_output_embeddings()
    if type(linear) is not nn.Linear:
        return f"its output head is of {type(linear)}, not a plain linear layer"
    if linear._forward_hooks or linear._forward_pre_hooks:
        return "its output head has hooks"
    curve = curve_of(model, linear, {"input_ids": piece.input_ids})
    if curve is None:
        return "what it makes of its head's output is neither a scale nor a softcap"
    PROVEN[model] = Head(linear, curve)
    lean = summed_loss(model, piece)
    if not _same(lean, own, OWN_LOGITS[compute_dtype(model)]):
        return f"the lean loss of a piece of the first row is {lean.item():.6g}, its own {own.item():.6g}"
    return ""


def _same(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Two losses; those that are no number end the training later, with a remedy of their own."""
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)
