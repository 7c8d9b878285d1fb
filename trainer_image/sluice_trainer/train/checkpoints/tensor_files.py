"""A state's tensors in one file, or in one file for each shard: some rows of every tensor.

Rows go to shards as in torch.chunk: the same number to each, and the rest to the last ones.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Shard:
    """One of `count` shards."""

    number: int = 0
    count: int = 1

    def of(self, rows: int) -> range:
        """The rows of this shard, of a tensor with so many."""
        each = -(-rows // self.count)
        return range(min(rows, self.number * each), min(rows, (self.number + 1) * each))

    @property
    def file(self) -> str:
        """The name of this shard's file."""
        return f"state{_SUFFIX}" if self.count == 1 else f"state-{self.number + 1:05d}-of-{self.count:05d}{_SUFFIX}"


WHOLE = Shard()


def read(folder: Path, files: Iterable[str], shard: Shard, prefixes: Sequence[str] = ("",)) -> dict[str, Tensor]:
    """Read one shard of each tensor, however many shards were written.

    Args:
        folder: Where the files are.
        files: Names of the files; those of other kinds are ignored.
        shard: The rows to read.
        prefixes: Only tensors whose names begin with one of these are read.
    """
    names = sorted(name for name in files if name.endswith(_SUFFIX))
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(folder / name, framework="pt")) for name in names]
        return {key: _rows(opened, key, shard) for key in opened[0].keys() if key.startswith(tuple(prefixes))}  # noqa: SIM118


def _rows(opened: Sequence[Any], key: str, shard: Shard) -> Tensor:
    """The rows of one tensor that belong to a shard. A scalar has no rows, and is the same in all files."""
    slices = [file.get_slice(key) for file in opened]
    if not slices[0].get_shape():
        tensor: Tensor = opened[0].get_tensor(key)
        return tensor
    counts = [found.get_shape()[0] for found in slices]
    wanted = shard.of(sum(counts))
    pieces, first = [], 0
    for found, count in zip(slices, counts, strict=True):
        start, end = max(wanted.start, first), min(wanted.stop, first + count)
        if start < end:
            pieces.append(found[start - first : end - first])
        first += count
    if not pieces:
        none: Tensor = slices[0][:0]
        return none
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
