"""A state's tensors in one file, or in one for each process that has a part of every tensor: some of its rows.

Rows go to processes as torch.chunk deals them: the same number to each, and to the last ones what is left.
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
class Part:
    """One of so many parts."""

    number: int = 0
    count: int = 1

    def of(self, rows: int) -> range:
        """Its rows of so many."""
        each = -(-rows // self.count)
        return range(min(rows, self.number * each), min(rows, (self.number + 1) * each))

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"state{_SUFFIX}" if self.count == 1 else f"state-{self.number + 1:05d}-of-{self.count:05d}{_SUFFIX}"


WHOLE = Part()


def read(folder: Path, files: Iterable[str], part: Part, kinds: Sequence[str] = ("",)) -> dict[str, Tensor]:
    """One part of each tensor, however many parts they were written in.

    Args:
        folder: Where the files are.
        files: Their names, others among them.
        part: Which rows.
        kinds: What the names of the tensors may begin with.
    """
    names = sorted(name for name in files if name.endswith(_SUFFIX))
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(folder / name, framework="pt")) for name in names]
        return {key: _rows(opened, key, part) for key in opened[0].keys() if key.startswith(tuple(kinds))}  # noqa: SIM118


def _rows(opened: Sequence[Any], key: str, part: Part) -> Tensor:
    """A part's rows of one tensor; a number has none, and is the same in all files."""
    slices = [file.get_slice(key) for file in opened]
    if not slices[0].get_shape():
        tensor: Tensor = opened[0].get_tensor(key)
        return tensor
    counts = [found.get_shape()[0] for found in slices]
    wanted = part.of(sum(counts))
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
