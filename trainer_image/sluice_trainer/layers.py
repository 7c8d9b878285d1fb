"""The layers of a model that an adapter may have, and those that lora.targetModules selects."""

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from sluice_api.reasons import Reason
from sluice_api.training import Lora
from sluice_trainer.errors import StageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WILD = "*?["


def linear_layers(model: "PreTrainedModel") -> list[str]:
    """Full names of all linear layers but the output head."""
    from torch import nn

    head = model.get_output_embeddings()
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not head]


def target_layers(layers: Sequence[str], targets: Sequence[str]) -> list[str]:
    """Select layers by lora.targetModules, for PEFT and vLLM; all layers if it is empty.

    Returns their last names where those match no other layer, else their full names.

    Raises:
        StageError: ModelInvalid, when a name or pattern matches no layer, or the model has none.
    """
    if not layers:
        raise StageError(
            Reason.MODEL_INVALID,
            "The model has no linear layer that an adapter could go beside (those of GPT-2 are of another kind). "
            "Choose another model.",
        )
    found = set[str]() if targets else set(layers)
    for target in targets:
        matching = {layer for layer in layers if _matches(target, layer)}
        if not matching:
            raise StageError(Reason.MODEL_INVALID, _no_layer(target, layers))
        found |= matching
    last_names = {layer.rpartition(".")[2] for layer in found}
    others = {layer.rpartition(".")[2] for layer in layers if layer not in found}
    return sorted(found if last_names & others else last_names)


def check_rank(model: "PreTrainedModel", names: Sequence[str], lora: Lora) -> None:
    """Refuse a rank that is more than the smaller side of each target layer: beyond it nothing is gained.

    Args:
        model: The model, with or without weights.
        names: What `target_layers` returned.
        lora: The adapter's settings.

    Raises:
        StageError: ModelInvalid, with the largest rank that makes sense.
    """
    most = max(
        min(model.get_submodule(layer).weight.shape)
        for layer in linear_layers(model)
        if any(_matches(name, layer) for name in names)
    )
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


def _no_layer(target: str, layers: Sequence[str]) -> str:
    names = sorted({layer.rpartition(".")[2] for layer in layers})
    near = get_close_matches(target, names, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Its linear layers are called {', '.join(names)}."
    return f"lora.targetModules: no linear layer of the model is called {target}. {hint}"
