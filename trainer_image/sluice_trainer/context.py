"""What a model's configuration says about the length of rows. Each function takes config.json's text part as a dict."""

from collections.abc import Iterator, Mapping
from typing import Any

_LENGTHS = (
    "max_position_embeddings",
    "n_positions",  # GPT-2, GPT-J, CodeGen, BigCode
    "n_ctx",
    "max_seq_len",  # MPT, DBRX
    "max_sequence_length",
    "seq_length",
    "context_length",  # RWKV
)
"""Names of the number of positions, as transformers' configurations spell it."""


def longest_sequence(config: Mapping[str, Any]) -> int | None:
    """Positions that the model knows: the smallest number, where a configuration has several; None without any."""
    found = [config[name] for name in _LENGTHS if isinstance(config.get(name), int) and config[name] > 0]
    return min(found, default=None)


def rope_boundary(config: Mapping[str, Any]) -> int | None:
    """The length beyond which all rows of a micro-batch get other rotary factors: longrope, as in Phi-3 and Phi-4-mini.

    transformers chooses the factors by the longest row of a micro-batch. So a row's loss depends on the rows beside it,
    unless those on either side of this length never share a micro-batch. None for all other models.
    """
    for rope in _ropes(config):
        if rope.get("rope_type", rope.get("type")) in ("longrope", "su"):
            length = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
            return length if isinstance(length, int) else None
    return None


def _ropes(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All settings of rotary embeddings: there may be one for each kind of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        found = config.get(name)
        if isinstance(found, Mapping):
            yield found
            yield from (each for each in found.values() if isinstance(each, Mapping))
