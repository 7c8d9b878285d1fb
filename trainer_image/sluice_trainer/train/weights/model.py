"""The model that is trained: the base model as the job's method needs it, and which of its weights are trained."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from sluice_api.finetunejob import FineTuneJobSpec
from sluice_api.reasons import Reason
from sluice_api.training import Attention, Method
from sluice_trainer.base_model import BaseModel
from sluice_trainer.errors import StageError
from sluice_trainer.layers import Layers, check_rank, selected, target_layers

Model: TypeAlias = PreTrainedModel | PeftModel

_ATTENTION = {Attention.AUTO: None, Attention.SDPA: "sdpa", Attention.EAGER: "eager"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load(base: BaseModel, spec: FineTuneJobSpec, device: torch.device) -> Model:
    """Load the base model, with a fresh adapter or with all weights trainable: the same bits each time, for one seed.

    Raises:
        StageError: ModelInvalid, in transformers' words.
    """
    if spec.method is Method.FULL:
        return load_base(base, spec, device).requires_grad_(requires_grad=True)
    return with_adapter(load_base(base, spec, device), spec)


def autocast_dtype(spec: FineTuneJobSpec) -> torch.dtype | None:
    """What the model computes in, if its weights are more precise: Full keeps them in float32. None otherwise."""
    return DTYPES[spec.training.dtype] if spec.method is Method.FULL and spec.training.dtype != "float32" else None


def has_bfloat16(device: torch.device) -> bool:
    """Whether the machine has instructions for bfloat16. Without them it is emulated, slowly."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(has for name, has in torch.cpu.get_capabilities().items() if "bf16" in name)


def compile_layers(model: Model) -> None:
    """Compile each decoder layer. Equal layers share their code, whatever the length of a micro-batch."""
    for layer in decoder_layers(model):
        layer.compile(dynamic=True)


def decoder_layers(model: Model) -> nn.ModuleList:
    """The decoder layers in their order: the longest list of modules that the model has."""
    return max((part for part in model.modules() if isinstance(part, nn.ModuleList)), key=len)


def load_base(base: BaseModel, spec: FineTuneJobSpec, device: torch.device) -> PreTrainedModel:
    """Load the base model in the method's dtype: safetensors only, and no code from the folder.

    Raises:
        StageError: ModelInvalid, in transformers' words.
    """
    kind: dict[str, Any] = {"dtype": DTYPES[spec.training.dtype]}
    match spec.method:
        case Method.QLORA:
            kind["quantization_config"] = _four_bits(kind["dtype"])
            kind["device_map"] = {"": device}  # quantized while they are loaded, a layer at a time
        case Method.FULL:
            kind["dtype"] = torch.float32
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base.weights,
            **kind,
            attn_implementation=_ATTENTION[spec.training.attention],
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError) as error:
        raise StageError(
            Reason.MODEL_INVALID, f"model.uri {base.uri}: transformers can't load it: {error}. Restore its files."
        ) from error
    if spec.method is Method.QLORA:
        _keep_four_bit_layout(model)
        return cast("PreTrainedModel", model)
    return cast("PreTrainedModel", model.to(device))


def _keep_four_bit_layout(model: nn.Module) -> None:
    """Keep 4-bit weights in the one layout that has gradients.

    On a CPU with AVX512-BF16, bitsandbytes repacks them for inference at the first forward in evaluation mode, and
    never back: from then on gradients end at each such layer, without an error.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = False


def _four_bits(dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with quantized scales, as in the QLoRA paper (Dettmers et al., 2023)."""
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def without_weights(base: BaseModel) -> PreTrainedModel:
    """The model on the meta device: names and shapes of its layers, without memory for weights."""
    config = AutoConfig.from_pretrained(base.folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return cast("PreTrainedModel", AutoModelForCausalLM.from_config(config))


def with_adapter(model: PreTrainedModel, spec: FineTuneJobSpec) -> PeftModel:
    """Put a fresh adapter in float32 on the linear layers that the spec names, or on the usual ones.

    Raises:
        StageError: ModelInvalid: there are no such layers, they are smaller than the rank, or PEFT passes over one.
    """
    layers = Layers.of(model)
    targets = target_layers(layers, spec.lora.target_modules)
    wanted = selected(layers, targets)
    check_rank(model, wanted, spec.lora)
    config = LoraConfig(
        r=spec.lora.rank,
        lora_alpha=spec.lora.alpha,
        lora_dropout=float(spec.lora.dropout),
        use_rslora=spec.lora.rank_stabilized,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise StageError(
            Reason.MODEL_INVALID, f"lora.targetModules: PEFT can't make an adapter for them: {error}."
        ) from error
    _require_adapters(adapted, wanted)
    adapted.peft_config["default"].base_model_name_or_path = spec.model.uri
    return cast("PeftModel", adapted)


def _require_adapters(model: PeftModel, layers: Sequence[str]) -> None:
    """Refuse a model in which PEFT passes over a layer that was asked for, without a word."""
    names = {name.partition(".lora_A.")[0] for name, _ in model.named_parameters(remove_duplicate=False)}
    adapted = {name.removeprefix("base_model.model.") for name in names}
    if missed := [layer for layer in layers if layer not in adapted]:
        raise StageError(
            Reason.MODEL_INVALID,
            f"lora.targetModules: PEFT puts no adapter beside {', '.join(missed[:3])}. Name other layers.",
        )


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained weights, by their names in the model."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def bare(model: Model) -> PreTrainedModel:
    """The base model itself, without PEFT's wrapper around it; PEFT's layers are still inside."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def turn_dropout_off(model: Model) -> None:
    """Set dropout to 0 everywhere, also where a model applies it from a float attribute instead of nn.Dropout."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


@contextmanager
def eval_mode(model: Model) -> Iterator[None]:
    """Run the block in evaluation mode and without gradients; training mode is as before afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
        if isinstance(root := bare(model), FSDPModule):
            root.reshard()  # else the next forward uses the weights that are gathered now, even after an update
