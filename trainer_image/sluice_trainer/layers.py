"""The layers of a model that an adapter may have, and those that lora.targetModules selects."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, cast

from sluice_api.reasons import Reason
from sluice_api.training import Lora
from sluice_trainer.errors import StageError

if TYPE_CHECKING:
    from torch.nn import Linear
    from transformers import PreTrainedModel

_WILD = "*?["
_NOT_COMPUTED_AS_LAYERS = {
    kind: frozenset({"out_proj"}) for kind in ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
}
"""Linear layers, by model_type, whose weights Mamba's kernel takes itself: an adapter beside them would do nothing, and
PEFT refuses it."""


@dataclass(frozen=True)
class Layers:
    """The layers that an adapter may go beside, by their full names, and all else that has a name in the model."""

    linear: tuple[str, ...]
    """All linear layers but the output head."""
    usual: tuple[str, ...]
    """Those that get an adapter when the job names none: of the language model, and computed as layers."""
    others: tuple[str, ...] = ()
    """Other modules and tensors, which an adapter must not go beside."""
    head: str = ""
    """The output head."""

    @classmethod
    def of(cls, model: "PreTrainedModel") -> "Layers":
        """Find them in a model, with or without weights."""
        from torch import nn

        head, text = model.get_output_embeddings(), _language_model(model)
        modules = dict(model.named_modules(remove_duplicate=False))
        linear = [name for name, layer in modules.items() if isinstance(layer, nn.Linear) and layer is not head]
        of_text = [name for name in linear if name.startswith(text)] or linear
        last_names = {name.rpartition(".")[2] for name in of_text}
        skipped = _NOT_COMPUTED_AS_LAYERS.get(model.config.model_type, frozenset()) | _of_experts(model, last_names)
        usual = [name for name in of_text if name.rpartition(".")[2] not in skipped]
        tensors = (name.removesuffix(".weight") for name, _ in model.named_parameters(remove_duplicate=False))
        others = {*modules, *tensors} - {*linear}
        at = next((name for name, layer in modules.items() if layer is head), "")
        return cls(tuple(linear), tuple(usual), tuple(sorted(others)), at)


def _of_experts(model: "PreTrainedModel", names: Collection[str]) -> set[str]:
    """Last names of layers that PEFT takes for those of the experts, which are one tensor: it would adapt that instead.

    Other layers may have them too, such as those of a shared expert.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=[*names], task_type="CAUSAL_LM")
    convert_peft_config_for_transformers(config, model, None)
    return {*names} - {*config.target_modules}


def _language_model(model: "PreTrainedModel") -> str:
    """What the names of its modules begin with. Beside it, a model for images and text has a vision tower."""
    decoder = model.get_decoder()
    return next((f"{name}." for name, module in model.named_modules() if name and module is decoder), "")


def target_layers(layers: Layers, targets: Sequence[str]) -> list[str]:
    """Select layers by lora.targetModules, for PEFT and vLLM; the usual ones if it is empty.

    Returns their last names where those match nothing else in the model, else their full names.

    Raises:
        StageError: ModelInvalid, when a name or pattern matches no layer, or the model has none.
    """
    if not layers.usual:
        raise StageError(
            Reason.MODEL_INVALID,
            "The model has no linear layer that an adapter could go beside (those of GPT-2 are of another kind). "
            "Choose another model.",
        )
    found = set[str]() if targets else set(layers.usual)
    for target in targets:
        matching = {layer for layer in layers.linear if _matches(target, layer)}
        if not matching:
            raise StageError(Reason.MODEL_INVALID, _no_layer(target, layers))
        found |= matching
    last_names = {layer.rpartition(".")[2] for layer in found}
    others = {layer.rpartition(".")[2] for layer in (*layers.linear, *layers.others) if layer not in found}
    return sorted(found if last_names & others else last_names)


def selected(layers: Layers, names: Sequence[str]) -> list[str]:
    """The full names of the layers that `target_layers` has selected by these names."""
    return [layer for layer in layers.linear if any(_matches(name, layer) for name in names)]


def check_rank(model: "PreTrainedModel", layers: Sequence[str], lora: Lora) -> None:
    """Refuse a rank that is more than the smaller side of each target layer: beyond it nothing is gained.

    Args:
        model: The model, with or without weights.
        layers: What `selected` returned.
        lora: The adapter's settings.

    Raises:
        StageError: ModelInvalid, with the largest rank that makes sense.
    """
    chosen = (cast("Linear", model.get_submodule(layer)) for layer in layers)
    most = max(min(layer.in_features, layer.out_features) for layer in chosen)  # weights in 4 bits have another shape
    if lora.rank > most:
        raise StageError(
            Reason.MODEL_INVALID,
            f"lora.rank {lora.rank} is more than any of the model's chosen layers can have: the smaller side of the "
            f"largest has {most}. Set lora.rank to {most} or less.",
        )


def _matches(target: str, layer: str) -> bool:
    if any(letter in target for letter in _WILD):
        return fnmatchcase(layer, target)
    return layer == target or layer.endswith(f".{target}")


def _no_layer(target: str, layers: Layers) -> str:
    if layers.head and _matches(target, layers.head):
        return f"lora.targetModules: {target} is the output head, which no adapter goes beside. Use method: Full."
    if any(_matches(target, other) for other in layers.others):
        return (
            f"lora.targetModules: {target} is no linear layer (a mixture of experts may have its experts in one "
            "tensor), and no adapter goes beside it. Use method: Full, or name other layers."
        )
    names = sorted({layer.rpartition(".")[2] for layer in layers.linear})
    near = get_close_matches(target, names, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Its linear layers are called {', '.join(names)}."
    return f"lora.targetModules: no linear layer of the model is called {target}. {hint}"
