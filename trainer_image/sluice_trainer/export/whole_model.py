"""A whole model on disk, as transformers and vLLM read it."""

import shutil
from pathlib import Path

import torch
from transformers import PreTrainedModel

from sluice_trainer.base_model import BaseModel

_OF_THE_MODEL = ("config.json", "*.safetensors", "*.safetensors.index.json", "generation_config.json", "manifest.json")
_NEVER = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.py", "README*", ".*")
"""Not copied: weights of other kinds would be the untrained ones, and code is never run."""


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
    for file in sorted(base.folder.iterdir()):
        if file.is_file() and not any(file.match(pattern) for pattern in (*_OF_THE_MODEL, *_NEVER)):
            shutil.copyfile(file, folder / file.name)
    model.save_pretrained(str(folder))
