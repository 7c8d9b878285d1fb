"""Adapters and models on disk: which files count, their digest, and the base model that they belong to."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pydantic import Field, NonNegativeInt, PositiveInt

from sluice_api.model import Model

MANIFEST = "manifest.json"
"""Written last into prepared/, each checkpoint and export/: a folder without it is not whole."""

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""The files that vLLM reads; the digest of an adapter is over these."""

CHAT_TEMPLATE = "chat_template.jinja"
"""In an export, and in a model's folder: how turns become text. An adapter that has one of its own is served with it.
"""

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


class ExportManifest(Model):
    """export/manifest.json: what was made, from what, and how good it is."""

    digest: str = Field(description="adapter_digest or model_digest of the folder, sha256:...")
    files: dict[str, str] = Field(description="Every file but this one, with its sha256.")
    base_model_uri: str
    base_model_fingerprint: str = Field(description="model_fingerprint of the base model's folder.")
    plan: str = Field("", description="plan of the rows that it was trained on; empty in older exports.")
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


class ModelFiles(Protocol):
    """A model's folder, on a disk or far away."""

    def sizes(self) -> Mapping[str, int]:
        """The files that lie in it, not deeper, with their bytes."""

    def read(self, name: str) -> bytes:
        """All of a small file. Raises FileNotFoundError where there is none."""

    def samples(self, name: str, starts: Sequence[int], length: int) -> Iterable[bytes]:
        """Parts of a file, each from its start, as long as asked or to the file's end."""


@dataclass(frozen=True)
class ModelFolder:
    """ModelFiles on this machine's disk."""

    folder: Path

    def sizes(self) -> Mapping[str, int]:
        """See ModelFiles."""
        return {path.name: path.stat().st_size for path in self.folder.iterdir() if path.is_file()}

    def read(self, name: str) -> bytes:
        """See ModelFiles."""
        return (self.folder / name).read_bytes()

    def samples(self, name: str, starts: Sequence[int], length: int) -> Iterator[bytes]:
        """See ModelFiles."""
        with (self.folder / name).open("rb") as file:
            for start in starts:
                file.seek(start)
                yield file.read(length)


def weight_files(names: Iterable[str]) -> list[str]:
    """Which of a model folder's files are its weights, in order: safetensors, or else the pickles of older models.

    Mistral's repositories have them a second time, as consolidated.safetensors in a format of its own.
    """
    names = sorted(names)
    safe = [name for name in names if name.endswith(".safetensors") and not name.startswith("consolidated")]
    return safe or [name for name in names if name.startswith("pytorch_model") and name.endswith(".bin")]


def model_fingerprint(model: Path | ModelFiles) -> str:
    """Tell two base models apart in well under a second on a disk, whatever their size.

    Covers the architecture (config.json without the fields that saving may change) and, of each file of
    weights, name, size and 64 samples of 64 KiB at even distances: other weights of the same shape have
    another fingerprint.

    Raises:
        FileNotFoundError: no config.json, or no weights.
    """
    files = ModelFolder(model) if isinstance(model, Path) else model
    config = json.loads(files.read("config.json"))
    shape = {key: value for key, value in config.items() if key not in ("transformers_version", "_name_or_path")}
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    sizes = files.sizes()
    weights = weight_files(sizes)
    if not weights:
        raise FileNotFoundError(f"{model} has no *.safetensors file")
    for name in weights:
        digest.update(f"{name} {sizes[name]}\n".encode())
        starts = [max(0, sizes[name] - _SAMPLE_BYTES) * index // (_SAMPLES - 1) for index in range(_SAMPLES)]
        for sample in files.samples(name, starts, _SAMPLE_BYTES):
            digest.update(sample)
    return digest.hexdigest()
