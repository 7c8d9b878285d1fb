"""Whether the base model has trained embeddings for the added tokens (of its vocabulary) that the rows have.

Such a token may have no row in the model's embedding, or one that nobody has trained: all zero, or, as transformers'
resize_token_embeddings makes it, next to the mean of all, like every other new one. An adapter leaves it as it is.
"""

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from sluice_api.artifacts import ModelFiles
from sluice_api.reasons import Reason
from sluice_trainer import logs
from sluice_trainer.base_model import BaseModel
from sluice_trainer.data.findings import MAX_ROWS_SHOWN
from sluice_trainer.data.weights import bytes_of, headers_of
from sluice_trainer.errors import StageError, fetching

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

ZERO_BELOW = 1e-16
"""The largest value of a row that Unsloth takes for zero."""
ALIKE_DISTANCE = 0.01
"""Largest distance of two untrained rows, relative to their norm. Rows that transformers makes are at 2e-3 in bfloat16
and at 1e-3 in float32; the two nearest trained special tokens of SmolLM2-135M are at 0.12."""


_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_TRAIN = "Fine-tune the whole model with these tokens first"
_RESIZE = "Make room for them first (transformers' resize_token_embeddings)"


def check_embeddings(
    base: BaseModel, model: "PreTrainedModel", added: Mapping[int, str], used: Iterable[int], *, trained: bool
) -> None:
    """Refuse rows with added tokens that the model has no trained embedding for. Reads no more than these tokens' rows.

    Args:
        base: The model.
        model: The same without weights.
        added: The added tokens' texts by their ids.
        used: The ids of the tokens that the rows are made of.
        trained: The embeddings are trained too: it is enough that there is one.

    Raises:
        StageError: ModelInvalid, naming up to five tokens.
    """
    using = sorted(added.keys() & set(used))
    rows = _rows(base, model, added) if using else None
    if rows is None:
        return
    fresh = [token for token in using if token not in rows or (not trained and _is_untrained(rows, token))]
    if fresh:
        names = ", ".join(added[token] for token in fresh[:MAX_ROWS_SHOWN])
        more = f" and {len(fresh) - MAX_ROWS_SHOWN} more" if len(fresh) > MAX_ROWS_SHOWN else ""
        raise StageError(
            Reason.MODEL_INVALID,
            f"model.uri {base.uri}: it has no {'' if trained else 'trained '}embedding for {names}{more}, which the "
            f"rows have or their chat template adds{'' if trained else ', and an adapter does not train any'}. "
            f"{_RESIZE if trained else _TRAIN}, or use a chat template and rows without them.",
        )


def _rows(base: BaseModel, model: "PreTrainedModel", tokens: Iterable[int]) -> dict[int, "Tensor"] | None:
    """The embedding's rows of these tokens, as far as it has them; None when it is under no name that is known."""
    embedding = model.get_input_embeddings()
    path = next(name for name, module in model.named_modules() if module is embedding)
    # transformers renames what is before: the same layer may have had another parent when it was saved.
    ending = f".{path.rpartition('.')[2]}.weight"
    shape = list(embedding.weight.shape)
    with fetching("model.uri", "model.credentials", Reason.MODEL_NOT_FOUND):
        for file, weights in headers_of(base).items():
            for name, weight in weights.items():
                if f".{name}".endswith(ending) and weight["shape"] == shape and weight["dtype"] in _DTYPES:
                    return _read(base.files, file, weight, sorted(token for token in tokens if token < shape[0]))
    logs.warning("embeddings not checked", why=f"no weights of the shape of {path} are called *{ending}")
    return None


def _read(files: ModelFiles, file: str, weight: Mapping[str, Any], tokens: list[int]) -> dict[int, "Tensor"]:
    """Rows of the embedding. Those side by side are read at once: a model may have thousands of added tokens."""
    dtype, width = _DTYPES[weight["dtype"]], weight["shape"][1]
    size = dtype.itemsize * width
    rows: dict[int, Tensor] = {}
    for _, side_by_side in groupby(enumerate(tokens), lambda pair: pair[1] - pair[0]):
        run = [token for _, token in side_by_side]
        content = bytes_of(files, file, weight["start"] + run[0] * size, len(run) * size)
        rows |= zip(run, torch.frombuffer(bytearray(content), dtype=dtype).view(-1, width).float(), strict=True)
    return rows


def _is_untrained(rows: Mapping[int, "Tensor"], token: int) -> bool:
    row = rows[token]
    if row.abs().max() < ZERO_BELOW:
        return True
    near = ALIKE_DISTANCE * row.norm()
    return any(bool((other - row).norm() <= near) for index, other in rows.items() if index != token)
