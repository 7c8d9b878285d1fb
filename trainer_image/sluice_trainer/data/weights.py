"""Whether a model's files have the weights that its config.json speaks of. No more than their headers are read.

transformers makes up at random what is missing, says so in its log alone, and goes on. Names alone don't tell: it
renames and merges weights of many families. So it is asked itself, with weights that have shapes and no bytes.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from sluice_api.artifacts import ModelFiles
from sluice_api.reasons import Reason
from sluice_trainer.base_model import BaseModel
from sluice_trainer.errors import StageError, fetching

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ONE, _INDEX = "model.safetensors", "model.safetensors.index.json"
"""One of them says where transformers finds the weights, the former first."""
_LONGEST_HEADER = 100_000_000
"""Longer ones safetensors itself refuses."""
_QUANTIZED = ("F8", "F6", "F4")
"""How dtypes begin that are nothing without scales, which transformers takes from config.json's word alone."""
_SHOWN = 3


def headers_of(base: BaseModel) -> dict[str, dict[str, dict[str, Any]]]:
    """Of each file that transformers reads, what its header says of each weight: dtype, shape, and where it starts.

    Raises:
        StageError: ModelInvalid: files are missing, or are cut off.
    """
    with fetching("model.uri", "model.credentials", Reason.MODEL_NOT_FOUND):
        sizes = base.files.sizes()
        return {name: _header(base, name, sizes[name]) for name in _files(base, sizes)}


def bytes_of(files: ModelFiles, name: str, start: int, length: int) -> bytes:
    """A part of a file."""
    return b"".join(files.samples(name, [start], length))


def check_weights(base: BaseModel, model: "PreTrainedModel") -> None:
    """Refuse a model some of whose weights transformers would make up.

    Args:
        base: The model.
        model: The same without weights.

    Raises:
        StageError: ModelInvalid, naming a few weights.
    """
    import torch

    weights = {name: weight for header in headers_of(base).values() for name, weight in header.items()}
    if quantized := next((each["dtype"] for each in weights.values() if each["dtype"].startswith(_QUANTIZED)), None):
        raise _invalid(base, f"its weights are quantized ({quantized})", "Training needs the unquantized ones")
    shapes = {name: torch.empty(weight["shape"], device="meta") for name, weight in weights.items()}
    with _quiet():
        try:
            _, found = type(model).from_pretrained(
                None, config=deepcopy(model.config), state_dict=shapes, device_map="meta", output_loading_info=True,
                ignore_mismatched_sizes=True,
            )  # fmt: skip
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise _invalid(base, f"transformers can't load it: {error}", "Restore its files") from error
    if missing := sorted(found["missing_keys"]):
        others = sorted(found["unexpected_keys"])
        unknown = f", and it has {_listed(others)}, which the model does not know" if others else ""
        raise _invalid(
            base,
            f"its files lack {_listed(missing)}{unknown}. They would be made up at random",
            "Save the whole model once more with save_pretrained, unquantized, without the wrapper that torch.compile "
            "or a parallel training puts around it",
        )
    for name, there, wanted in sorted(found["mismatched_keys"]):
        raise _invalid(
            base,
            f"{name} is of the shape {[*there]} in its files, and of {[*wanted]} by its config.json",
            "Restore the config.json that belongs to the weights",
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the report and the progress bar that transformers shows while it loads weights."""
    from transformers.utils import logging

    verbosity, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()


def _files(base: BaseModel, sizes: Mapping[str, int]) -> list[str]:
    if _ONE in sizes:
        return [_ONE]
    if _INDEX not in sizes:
        there = _listed(sorted(name for name in sizes if name.endswith(".safetensors")))
        raise _invalid(base, f"it has {there}, and neither {_ONE} nor {_INDEX}, which says what is in them", "Add it")
    try:
        names = sorted({*json.loads(base.files.read(_INDEX))["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _invalid(base, f"{_INDEX} has no weight_map", "Restore it") from error
    if missing := [name for name in names if name not in sizes]:
        raise _invalid(base, f"{_INDEX} names {_listed(missing)}, and there is no such file", "Copy the model again")
    return names


def _header(base: BaseModel, file: str, size: int) -> dict[str, dict[str, Any]]:
    """What the header of a safetensors file says of each weight.

    https://github.com/huggingface/safetensors#format: eight bytes with the header's length, the header, the weights.
    """
    try:
        (length,) = struct.unpack("<Q", bytes_of(base.files, file, 0, 8))
        text = bytes_of(base.files, file, 8, min(length, _LONGEST_HEADER))
        header = json.loads(text if len(text) == length else b"")
        weights = {name: weight for name, weight in header.items() if name != "__metadata__"}
        for weight in weights.values():
            weight["start"] = 8 + length + weight["data_offsets"][0]
        whole = 8 + length + max((weight["data_offsets"][1] for weight in weights.values()), default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _cut_off(base, file) from error
    if size < whole:
        raise _cut_off(base, file)
    return weights


def _cut_off(base: BaseModel, file: str) -> StageError:
    return _invalid(base, f"{file} is no safetensors file, or is cut off", "Restore it")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def _invalid(base: BaseModel, what: str, remedy: str) -> StageError:
    return StageError(Reason.MODEL_INVALID, f"model.uri {base.uri}: {what}. {remedy}.")
