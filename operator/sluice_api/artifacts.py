"""Adapters and models on disk: which files count, their digest, and the base model that they belong to."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from sluice_api.model import Model

MANIFEST = "manifest.json"
"""Written last into prepared/, each checkpoint and export/: a folder without it is not whole."""

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""The files that vLLM reads; the digest of an adapter is over these."""

CHAT_TEMPLATE = "chat_template.jinja"
"""In an export, and in a model's folder: how turns become text. An adapter with one of its own is served with it."""

_ABOUT_MODELS = ("*.json", "*.jinja", "*.model", "*.txt", "*.spm", "*.tiktoken", "additional_chat_templates/*.jinja")
_NO_WEIGHTS = frozenset({"training_args.bin", "optimizer.bin", "scheduler.bin", "random_states.bin"})
"""Pickles that trainers leave beside a model."""

_SAMPLES = 64
_SAMPLE_BYTES = 65_536


def belongs_to_model(path: Path, folder: Path) -> bool:
    """Whether a path without links lies in a model's folder, or in the files of the hub cache that the folder is of.

    The cache of huggingface_hub has models--<name>/snapshots/<revision>/<file> as a link to models--<name>/blobs/.
    """
    folder = folder.resolve()
    of_cache = folder.parent.name == "snapshots" and path.is_relative_to(folder.parent.parent / "blobs")
    return of_cache or path.is_relative_to(folder)


def stray_link(folder: Path) -> Path | None:
    """The first link in a model's folder, at any depth, that leads out of it: to what others may not let it read."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for path in sorted(Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink() and not belongs_to_model(path.resolve(), folder):
                return path
    return None


def weight_files(names: Iterable[str]) -> tuple[str, ...]:
    """Of the names of a model's files, those of its weights: safetensors, or pickles (*.bin) where it has none."""
    own = sorted(name for name in names if "/" not in name)
    safe = tuple(name for name in own if name.endswith(".safetensors"))
    return safe or tuple(name for name in own if name.endswith(".bin") and name not in _NO_WEIGHTS)


def model_files(names: Iterable[str]) -> tuple[str, ...]:
    """Of the names of a folder's or a repository's files, those of a model: configuration, tokenizer, weights."""
    names = sorted(names)
    about = (name for name in names if any(_matches(name, pattern) for pattern in _ABOUT_MODELS))
    return (*about, *weight_files(names))


def _matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and PurePosixPath(name).match(pattern)


class ExportManifest(Model):
    """export/manifest.json: what was made, from what, and how good it is."""

    digest: str = Field(description="adapter_digest or model_digest of the folder, sha256:...")
    files: dict[str, str] = Field(description="Every file but this one, with its sha256.")
    base_model_uri: str
    base_model_fingerprint: str = Field(description="model_fingerprint of the base model's folder.")
    plan: str = Field("", description="training_plan of the rows that it was trained on; empty in older exports.")
    steps: NonNegativeInt
    evaluation_loss_before: float | None = None
    evaluation_loss_after: float | None = None
    chat_template: str = Field("", description="The template that the rows were rendered with.")
    job: str = Field("", description="namespace/name of the FineTuneJob.")
    job_uid: str = ""


class AdapterManifest(ExportManifest):
    """The manifest of an adapter."""

    format: Literal["sluice.adapter/v1"] = "sluice.adapter/v1"
    rank: PositiveInt
    target_modules: tuple[str, ...]


class ModelManifest(ExportManifest):
    """The manifest of a whole model."""

    format: Literal["sluice.model/v1"] = "sluice.model/v1"


def file_digest(path: Path) -> str:
    """sha256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def adapter_digest(folder: Path) -> str:
    """sha256 over names and contents of the files that vLLM reads, as sha256:<hex>.

    Raises:
        FileNotFoundError: one of ADAPTER_FILES is missing.
    """
    return _digest_of(folder, ADAPTER_FILES)


def model_digest(folder: Path) -> str:
    """sha256 over names and contents of a whole model's weights and configuration, as sha256:<hex>.

    Raises:
        FileNotFoundError: there is no config.json.
    """
    return _digest_of(folder, ["config.json", *sorted(path.name for path in folder.glob("*.safetensors"))])


def _digest_of(folder: Path, names: Iterable[str]) -> str:
    lines = (f"{file_digest(folder / name)}  {name}\n" for name in names)
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def model_fingerprint(folder: Path) -> str:
    """Tell two base models apart in well under a second, whatever their size.

    Covers the architecture (config.json without the fields that saving may change) and, of each of
    weight_files, name, size and 64 samples of 64 KiB at even distances: other weights of the same
    shape have another fingerprint.

    Raises:
        FileNotFoundError: no config.json, or no weights.
    """
    config = json.loads((folder / "config.json").read_text())
    shape = {key: value for key, value in config.items() if key not in ("transformers_version", "_name_or_path")}
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    weights = weight_files(path.name for path in folder.iterdir())
    if not weights:
        raise FileNotFoundError(f"{folder} has no *.safetensors or *.bin file")
    for path in (folder / name for name in weights):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for index in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * index // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
