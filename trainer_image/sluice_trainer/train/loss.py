"""The loss of a micro-batch: cross entropy of its loss tokens."""

import inspect
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import cross_entropy

from sluice_trainer.train.batches import MicroBatch
from sluice_trainer.train.fused_cross_entropy import fused_cross_entropy
from sluice_trainer.train.head import FusedHead, hidden_states
from sluice_trainer.train.weights.model import Model, bare


@dataclass(frozen=True)
class TokenLoss:
    """A model, and how the cross entropy of its loss tokens is computed."""

    model: Model
    autocast_dtype: torch.dtype | None = None
    """What the model computes in if its weights are more precise; None: in the dtype of its weights."""
    fused_head: FusedHead | None = None
    """The head, where the fused loss is verified (trials/fused_loss.py). None: the loss is of full logits."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that forward and backward compute in."""
        return self.autocast_dtype or bare(self.model).dtype

    def autocast(self) -> AbstractContextManager[object]:
        """The context for each use of the model and of its output head."""
        if self.autocast_dtype is None or isinstance(bare(self.model), FSDPModule):  # FSDP rounds by itself
            return nullcontext()
        return torch.autocast(bare(self.model).device.type, self.autocast_dtype)

    def summed(self, batch: MicroBatch) -> Tensor:
        """Cross entropy of the loss tokens, summed, in nats and float32."""
        return self.each(batch).sum()

    def each(self, batch: MicroBatch) -> Tensor:
        """Cross entropy of each loss token, row by row, in nats and float32; a row's first token has none."""
        inputs = {"input_ids": batch.input_ids}
        if batch.position_ids is not None:
            inputs["position_ids"] = batch.position_ids
        predicting, targets = batch.loss_mask[:, 1:], batch.input_ids[:, 1:]
        # Positions that predict nothing aren't given to the head at all, where the model can leave them out.
        if self._takes_logits_to_keep:
            columns = inputs["logits_to_keep"] = predicting.any(dim=0).nonzero().squeeze(1)
            predicting, targets = predicting[:, columns], targets[:, columns]
        used = slice(predicting.shape[1])
        head = self.fused_head
        with self.autocast():
            if head is None:
                logits = self.model(**inputs, use_cache=False).logits[:, used]
                return cross_entropy(logits[predicting].float(), targets[predicting], reduction="none")
            hidden = hidden_states(self.model, head.linear, inputs)[:, used]
            return fused_cross_entropy(hidden[predicting], head.linear, targets[predicting], head.transform)

    @cached_property
    def _takes_logits_to_keep(self) -> bool:
        return "logits_to_keep" in inspect.signature(bare(self.model).forward).parameters
