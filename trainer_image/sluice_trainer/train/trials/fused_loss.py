"""Whether the fused loss equals the model's own loss: tried on a piece of one row, before step 0."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sluice_api.reasons import Reason
from sluice_trainer import logs
from sluice_trainer.errors import StageError
from sluice_trainer.train.batches import MicroBatch
from sluice_trainer.train.head import FusedHead, logit_transform_of
from sluice_trainer.train.loss import TokenLoss
from sluice_trainer.train.weights.model import bare, eval_mode

WINDOW = 16
"""Tokens before and after the first loss token that the comparison runs over."""
SAME_LOGITS = 1e-5
"""Relative and absolute tolerance between two losses of the very same logits."""
OWN_LOGITS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""The same between two losses that compute their own logits, by the dtype that the model computes in."""


def verify_fused_loss(loss: TokenLoss, input_ids: Tensor, loss_mask: Tensor) -> TokenLoss:
    """Compare the fused loss with the model's own on a piece of one row; returns the loss to train with.

    That is fused where both are the same, and computed from full logits otherwise.

    Args:
        loss: The model, and what it computes in.
        input_ids: int64, 1 x length.
        loss_mask: bool, 1 x length, and somewhere true.

    Raises:
        StageError: ModelInvalid: what the model itself calls its loss is more than the cross entropy of its logits.
    """
    model = loss.model
    first = int(loss_mask[0, 1:].nonzero()[0]) + 1
    around = slice(max(0, first - WINDOW), first + WINDOW)
    piece = MicroBatch(input_ids[:, around], loss_mask[:, around])
    with eval_mode(model), loss.autocast():
        found = _fused(loss, piece, _own_loss(loss, piece))
    model_type = bare(model).config.model_type
    if isinstance(found, str):
        logs.warning("loss from full logits", model_type=model_type, reason=found)
        return replace(loss, fused_head=None)
    transform = found.transform
    logs.info("fused loss", model_type=model_type, logits_scale=transform.scale, logits_cap=transform.cap)
    return replace(loss, fused_head=found)


def _own_loss(loss: TokenLoss, piece: MicroBatch) -> Tensor:
    """Compute the model's own loss over the loss tokens, summed, and check that it is the cross entropy."""
    model, input_ids, predicting, targets = loss.model, piece.input_ids, piece.loss_mask[:, 1:], piece.input_ids[:, 1:]
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


def _fused(loss: TokenLoss, piece: MicroBatch, own: Tensor) -> FusedHead | str:
    """The head with which the fused loss of a piece is the model's own; or why there is none."""
    linear = bare(loss.model).get_output_embeddings()
    if type(linear) is not nn.Linear:
        return f"its output head is of {type(linear)}, not a plain linear layer"
    if linear._forward_hooks or linear._forward_pre_hooks:
        return "its output head has hooks"
    transform = logit_transform_of(loss.model, linear, {"input_ids": piece.input_ids})
    if transform is None:
        return "what it does to its head's output is neither a scale nor a softcap"
    head = FusedHead(linear, transform)
    fused = replace(loss, fused_head=head).summed(piece)
    if not _same(fused, own, OWN_LOGITS[loss.dtype]):
        return f"the fused loss of a piece of the first row is {fused.item():.6g}, its own {own.item():.6g}"
    return head


def _same(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether two losses are the same. NaN equals NaN here: training ends by it later, with a remedy of its own."""
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)
