"""The base model with a fresh LoRA adapter on it."""

from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from sluice_api.finetunejob import FineTuneJobSpec
from sluice_api.reasons import Reason
from sluice_api.training import Attention, Training
from sluice_trainer.base_model import BaseModel
from sluice_trainer.errors import StageError
from sluice_trainer.layers import chosen, linear_layers

_ATTENTION = {Attention.AUTO: None, Attention.SDPA: "sdpa", Attention.EAGER: "eager"}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_base(base: BaseModel, training: Training) -> PreTrainedModel:
    """Load the frozen weights: safetensors only, and no code from the folder.

    Raises:
        StageError: ModelInvalid, in transformers' words.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base.folder,
            dtype=_DTYPES[training.dtype],
            attn_implementation=_ATTENTION[training.attention],
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError) as error:
        raise StageError(
            Reason.MODEL_INVALID, f"model.uri {base.uri}: transformers can't load it: {error}. Restore its files."
        ) from error
    return cast("PreTrainedModel", model)


def without_weights(base: BaseModel) -> PreTrainedModel:
    """The model's layers, in no memory: to look at their names and shapes."""
    config = AutoConfig.from_pretrained(base.folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return cast("PreTrainedModel", AutoModelForCausalLM.from_config(config))


def with_adapter(model: PreTrainedModel, spec: FineTuneJobSpec) -> PeftModel:
    """Put a fresh adapter in float32 on the linear layers that the spec names, or on all but the output head."""
    config = LoraConfig(
        r=spec.lora.rank,
        lora_alpha=spec.lora.alpha,
        lora_dropout=float(spec.lora.dropout),
        use_rslora=spec.lora.rank_stabilized,
        target_modules=chosen(linear_layers(model), spec.lora.target_modules),
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = spec.model.uri
    return cast("PeftModel", adapted)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's weights by their name in the model."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
