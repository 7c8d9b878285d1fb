"""The engine's model on this pod: in its claim, or where the container `model` has fetched it to."""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sluice_api import pods
from sluice_api.artifacts import CHAT_TEMPLATE, model_fingerprint, weight_files
from sluice_api.inferenceengine import InferenceEngineSpec
from sluice_api.model import Model
from sluice_api.sources import is_object, volume_path
from sluice_server.paths import SlotPaths

_LONGEST_HEADER = 100_000_000
"""Of a file of safetensors, as its library has it."""


class Fetched(Model):
    """What the container `model` leaves for the others, in pods.FETCHED_FILE."""

    folder: PurePosixPath
    """By the pods' contract, below pods.CACHE."""
    fingerprint: str


@dataclass(frozen=True)
class EngineModel:
    """A model's folder, and how turns become text for it."""

    folder: Path
    fingerprint: str | None = None
    """model_fingerprint, where it is known already."""
    chat_template: str | None = None
    """The text of model.chatTemplate; None if the model's own template is used."""

    @property
    def has_pickles(self) -> bool:
        """Whether its weights are pickles (*.bin). vLLM reads tensors from them, and runs no code that is in them."""
        weights = weight_files(path.name for path in self.folder.iterdir())
        return bool(weights) and not weights[0].endswith(".safetensors")

    def known_fingerprint(self) -> str:
        """model_fingerprint of the folder."""
        return self.fingerprint or model_fingerprint(self.folder)

    @property
    def template(self) -> str:
        """The template with which vLLM renders a request for the base model; empty if there is none, or if it can't be
        told from the files: a request may then have the same one."""
        return self.chat_template or _own_template(self.folder)


def folder_problem(folder: Path) -> str:
    """What is wrong with a model's folder that vLLM would only trip over, with what to do; empty if nothing is seen."""
    names = sorted(path.name for path in folder.iterdir())
    has = f"It has: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}." if names else "It is empty."
    if "params.json" in names:  # Mistral's own format, which vLLM reads without the files that follow
        return ""
    if "config.json" not in names:
        return f"the folder has no config.json, so it is no model. {_taken_for(names) or has} Correct model.uri."
    try:
        if not isinstance(json.loads((folder / "config.json").read_bytes()), dict):
            return "its config.json is no JSON object. Restore it."
    except ValueError:
        return "its config.json can't be read as JSON. Restore it."
    weights = weight_files(names)
    if not weights:
        return f"the folder has no weights, neither *.safetensors nor pytorch_model*.bin. {has} Copy them there."
    torn = (name for name in weights if name.endswith(".safetensors") and not _is_whole(folder / name))
    if name := next(torn, None):
        return f"{name} is damaged: it is shorter or longer than its header says. Copy it again."
    return ""


def _taken_for(names: list[str]) -> str:
    """What a folder is that is often taken for a model's; empty if it is none of these."""
    if "snapshots" in names:
        return "It is of a cache of the hub: the model is in the folder below snapshots/ that a commit names."
    if "adapter_config.json" in names:
        return "It is an adapter: serve its base model, and publish it with an Adapter."
    if any(name.endswith(".gguf") for name in names):
        return "It has GGUF files, which are not served: use the model as safetensors."
    return ""


def _is_whole(file: Path) -> bool:
    """Whether a file of safetensors is as long as its header says."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 0 < length <= _LONGEST_HEADER:
            return False
        try:
            header = json.loads(opened.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
            return bool(file.stat().st_size == 8 + length + max(ends, default=0))
        except (ValueError, AttributeError, KeyError, TypeError, IndexError):
            return False


def engine_model(spec: InferenceEngineSpec, paths: SlotPaths) -> EngineModel:
    """The model of a slot.

    Raises:
        FileError: model.chatTemplate can't be had.
        OSError: the container `model` has not done its work.
    """
    text = _given_template(spec, paths)
    if in_claim := volume_path(spec.model.uri):
        return EngineModel(paths.at(in_claim.mounted), chat_template=text)
    fetched = Fetched.model_validate_json(paths.at(pods.FETCHED_FILE).read_bytes())
    return EngineModel(paths.at(fetched.folder), fetched.fingerprint, text)


def _given_template(spec: InferenceEngineSpec, paths: SlotPaths) -> str | None:
    template = spec.model.chat_template
    if template is None:
        return None
    if is_object(template.uri or ""):
        return paths.at(pods.FETCHED_TEMPLATE).read_text(encoding="utf-8")
    from sluice_files.chat_templates import template_text

    return template_text(template, None, paths.at)


def _own_template(folder: Path) -> str:
    """The chat template in a model's folder, where transformers looks for it; of several, the one called default."""
    file = folder / CHAT_TEMPLATE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    try:
        found: Any = json.loads((folder / "tokenizer_config.json").read_bytes()).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return ""
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else ""
