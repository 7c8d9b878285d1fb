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
