"""The base model: where its folder is, and whether it can be trained."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sluice_api.artifacts import (
    ModelFiles,
    ModelFolder,
    file_digest,
    model_fingerprint,
    stray_link,
    weight_files,
)
from sluice_api.reasons import Reason
from sluice_api.sources import Credentials, volume_path
from sluice_files.credentials import read_credentials
from sluice_trainer.context import longest_sequence, rope_boundary
from sluice_trainer.errors import StageError, fetching
from sluice_trainer.paths import resolve_in_claim, scratch_folder, why_not_found

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_OF_TOKENIZERS = (
    "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "bpe.codes", "*.model",
    "*.spm", "*.tiktoken", "chat_template*", "additional_chat_templates/*.jinja",
)  # fmt: skip
"""What transformers' tokenizers read."""


@dataclass(frozen=True)
class BaseModel:
    """A folder with config.json, tokenizer and weights, checked."""

    uri: str
    folder: Path
    weights: Path
    """The folder with the weights as safetensors; of a model that has pickles, `folder` until pickled.py wrote one."""
    revision: str
    vocabulary: int
    longest_sequence: int | None
    """Positions that the model knows; None when its configuration does not say."""
    rope_boundary: int | None
    """context.rope_boundary of its configuration."""
    fingerprint: str
    """A digest that differs for every other base model."""
    has_pickles: bool = False
    """Its weights are pickles, which nothing but pickled.py reads."""
    left: ModelFiles | None = None
    """Where its weights were left, if they are not here."""

    @property
    def files(self) -> ModelFiles:
        """The folder with its weights, of which parts can be read, wherever it is."""
        return self.left or ModelFolder(self.weights)

    @property
    def tokenizer_digest(self) -> str:
        """A digest of the files that decide how a row is rendered, tokenised and ended."""
        files = sorted({file for name in _OF_TOKENIZERS for file in self.folder.glob(name) if file.is_file()})
        lines = [f"{file_digest(file)}  {file.relative_to(self.folder)}\n" for file in files]
        generation = self.folder / "generation_config.json"
        if generation.is_file():  # of which only the tokens that end an answer matter
            content = _json_object(generation, f"model.uri {self.uri}:")
            lines.append(str(content.get("eos_token_id")))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def locate(uri: str, revision: str = "", credentials: Credentials | None = None, *, weights: bool = True) -> BaseModel:
    """Find the base model, fetching it if need be, and check that it is one.

    Args:
        uri: model.uri.
        revision: The commit of the hub that an earlier stage used.
        credentials: model.credentials.
        weights: False where only configuration and tokenizer are needed: what is elsewhere stays there.

    Raises:
        StageError: ModelNotFound, ModelInvalid, and those of errors.fetching, with what is missing.
    """
    with _fetching():
        opened = read_credentials(credentials, uri)
    path, fetched = volume_path(uri), None
    if path is None:
        from sluice_files.models import fetch_model

        with _fetching():
            fetched = fetch_model(uri, scratch_folder("models"), opened, revision, weights=weights)
        folder, weight_names = fetched.folder, fetched.weights
    else:
        found = resolve_in_claim(path)
        if found is None:
            raise StageError(
                Reason.MODEL_NOT_FOUND,
                f"model.uri {uri}: {why_not_found(path, 'folder')} Correct model.uri.",
            )
        folder = found
        weight_names = weight_files(each.name for each in folder.iterdir()) if folder.is_dir() else []
    config = _checked_config(uri, folder, weights=weights or path is not None)
    text = config.get("text_config", config)
    with _fetching():  # samples of weights that were left where they are
        fingerprint = fetched.fingerprint if fetched else model_fingerprint(folder)
    return BaseModel(
        uri=uri,
        folder=folder,
        weights=folder,
        revision=fetched.revision if fetched else revision,
        vocabulary=text.get("vocab_size", 0),
        longest_sequence=longest_sequence(text),
        rope_boundary=rope_boundary(text),
        fingerprint=fingerprint,
        has_pickles=not weight_names[0].endswith(".safetensors"),
        left=fetched.left if fetched else None,
    )


def _fetching() -> AbstractContextManager[None]:
    return fetching("model.uri", "model.credentials", Reason.MODEL_NOT_FOUND)


def stop_tokens(base: BaseModel, end: int | None) -> set[int]:
    """The ids at which vLLM ends an answer: its InputProcessor asks the tokenizer and the generation config.

    Args:
        base: The model.
        end: Its tokenizer's eos_token_id.
    """
    from transformers import AutoConfig, GenerationConfig

    try:
        generation = GenerationConfig.from_pretrained(base.folder, local_files_only=True)
    except OSError:  # there is none: vLLM then makes one of config.json
        config = AutoConfig.from_pretrained(base.folder, local_files_only=True, trust_remote_code=False)
        generation = GenerationConfig.from_model_config(config)
    also = generation.eos_token_id
    return {*(also if isinstance(also, list) else [also]), end} - {None}


def require_same(base: BaseModel, fingerprint: str) -> None:
    """Refuse a model whose folder has changed since Prepare tokenised the rows for it."""
    if base.fingerprint != fingerprint:
        raise StageError(
            Reason.MODEL_INVALID,
            f"model.uri {base.uri}: the files have changed since the rows were prepared. "
            "Restore them, or delete the job and create it again.",
        )


def _checked_config(uri: str, folder: Path, *, weights: bool) -> dict[str, Any]:
    """Read config.json of a model's folder, and check that the folder can be trained.

    Args:
        weights: whether they are to be here.
    """
    invalid = f"model.uri {uri} is no model that can be trained:"
    if not folder.is_dir():
        raise StageError(Reason.MODEL_INVALID, f"{invalid} it is a file. Name the folder that has config.json.")
    if link := stray_link(folder):
        raise StageError(
            Reason.MODEL_INVALID,
            f"{invalid} {link.relative_to(folder)} is a link that leads out of the folder, which is not followed. "
            "Put the file itself there.",
        )
    _refuse_adapter(folder, invalid)
    config = _json_object(folder / "config.json", invalid)
    text = config.get("text_config", config)
    if not isinstance(text, dict) or not isinstance(text.get("vocab_size", 0), int):
        what = "vocab_size is no number" if isinstance(text, dict) else "text_config is no object"
        raise StageError(Reason.MODEL_INVALID, f"{invalid} its config.json is damaged: {what}. Restore it.")
    if weights and not weight_files(path.name for path in folder.iterdir()):
        others = sorted(path.name for pattern in ("*.pt", "*.pth", "*.gguf") for path in folder.glob(pattern))
        has = f"only {', '.join(others[:3])}" if others else "no weights"
        raise StageError(
            Reason.MODEL_INVALID, f"{invalid} it has {has}. Save the weights as *.safetensors (save_pretrained does)."
        )
    if not any((folder / name).exists() for name in _TOKENIZER_FILES):
        raise StageError(
            Reason.MODEL_INVALID, f"{invalid} it has no tokenizer. Add {' or '.join(_TOKENIZER_FILES)} to the folder."
        )
    tokenizer_config = folder / "tokenizer_config.json"
    remote = [config, _json_object(tokenizer_config, invalid)] if tokenizer_config.exists() else [config]
    if any("auto_map" in each for each in remote) and not _is_known(config):
        raise StageError(
            Reason.MODEL_INVALID,
            f"{invalid} it brings its own code (auto_map), which is never run, and transformers has none for models of "
            f"type {config.get('model_type')!r}. Use a model that transformers knows.",
        )
    if kernel := _hub_kernel(config):
        raise StageError(
            Reason.MODEL_INVALID,
            f"{invalid} its config.json names a kernel of the hub ({kernel}), which is code that is never fetched. "
            "Remove the field; spec.training.attention says how attention is computed.",
        )
    if "quantization_config" in config:
        raise StageError(Reason.MODEL_INVALID, f"{invalid} its weights are quantized. LoRA needs the unquantized ones.")
    return config


def _refuse_adapter(folder: Path, invalid: str) -> None:
    """Refuse a folder with an adapter: transformers would put it on the model that is beside it, and vLLM would not."""
    file = folder / "adapter_config.json"
    if not file.exists():
        return
    of = _json_object(file, invalid).get("base_model_name_or_path")
    if (folder / "config.json").exists():
        problem = "an adapter lies beside the model (adapter_config.json), and transformers would put it on"
        remedy = "Remove its files; or merge it into the model (PEFT's merge_and_unload), and save that alone"
    else:
        problem = f"it is an adapter, for the model {of}"
        remedy = "Name that model; or merge the adapter into it (PEFT's merge_and_unload), and name the result"
    raise StageError(Reason.MODEL_INVALID, f"{invalid} {problem}. {remedy}.")


def _is_known(config: Mapping[str, Any]) -> bool:
    """Whether transformers has code of its own for a model's type, and so needs none from its folder."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return config.get("model_type") in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def _hub_kernel(config: Any) -> str | None:
    """The first kernel that a configuration, or a nested one, names: org/name as the implementation of a layer."""
    if not isinstance(config, dict):
        return None
    for key, value in config.items():
        named = value.values() if isinstance(value, dict) else (value,)
        if "_implementation" in key and any(isinstance(name, str) and "/" in name for name in named):
            return f"{key}: {value}"
        if found := _hub_kernel(value):
            return found
    return None


def _json_object(path: Path, invalid: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = ", ".join(sorted(child.name for child in path.parent.iterdir())[:6]) or "nothing"
        raise StageError(
            Reason.MODEL_INVALID, f"{invalid} {path.name} is missing (the folder has: {there}). Correct model.uri."
        ) from None
    except (ValueError, RecursionError) as error:
        raise StageError(
            Reason.MODEL_INVALID, f"{invalid} {path.name} is not JSON: {error}. Restore the file."
        ) from error
    if not isinstance(content, dict):
        raise StageError(Reason.MODEL_INVALID, f"{invalid} {path.name} is not a JSON object. Restore the file.")
    return content
