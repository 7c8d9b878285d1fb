"""A whole model on disk, as transformers and vLLM read it."""

import shutil
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel

from sluice_api.artifacts import belongs_to_model
from sluice_api.reasons import Reason
from sluice_trainer.base_model import BaseModel
from sluice_trainer.errors import StageError

_COPIED = ("*.json", "*.jinja", "*.model", "*.txt")
"""The tokenizer's files and the like. Never weights of another kind, which would be the untrained ones, nor code."""
_WRITTEN = ("config.json", "*.index.json", "manifest.json")
"""Of these files, those that are not copied, because transformers or Sluice writes new ones, or they would be wrong."""


def write_model(model: PreTrainedModel, dtype: torch.dtype, base: BaseModel, folder: Path) -> None:
    """Write config and weights, and beside them the tokenizer's files as the base model has them.

    Args:
        model: Its weights are rounded in place; not its buffers (positions), which no file has.
        dtype: What it was computed in: the other bits of float32 were for the optimizer.
        base: What it was made from.
        folder: Where to.
    """
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    model.generation_config = GenerationConfig()  # some that transformers reads it refuses to write
    model.save_pretrained(str(folder))
    (folder / "generation_config.json").unlink(missing_ok=True)
    for file in sorted(base.folder.iterdir()):
        copied = any(file.match(pattern) for pattern in _COPIED) and not any(file.match(name) for name in _WRITTEN)
        if file.is_file() and copied and not (folder / file.name).exists():
            _copy(file, folder / file.name, base)


def _copy(file: Path, target: Path, base: BaseModel) -> None:
    """Copy what is in the model's own folder, whatever the name leads to since the folder was checked.

    Raises:
        StageError: ModelInvalid: it leads elsewhere by now.
    """
    with file.open("rb") as source:
        if not belongs_to_model(Path(f"/proc/self/fd/{source.fileno()}").readlink(), base.folder):
            raise StageError(
                Reason.MODEL_INVALID, f"model.uri {base.uri}: {file.name} is a link that leads out of the folder."
            )
        with target.open("wb") as copy:
            shutil.copyfileobj(source, copy)
