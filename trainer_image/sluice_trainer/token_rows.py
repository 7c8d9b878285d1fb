"""Rows of tokens: in memory, and as files that are written and read row by row."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from sluice_api.model import Model

TRAINING = "training.npy"
VALIDATION = "validation.npy"
ROWS = ("input_ids.npy", "loss_mask.npy", "offsets.npy", "splits.npy", TRAINING, VALIDATION)
"""What decides what is learnt; the other files say where it is from."""


class ReadFile(Model):
    """A file that rows are from."""

    name: str
    unit: str
    """What numbers of rows count: line, or row."""


@dataclass(frozen=True)
class TokenRow:
    """One row: its tokens and their loss mask. A pair is both of its rows end to end."""

    input_ids: NDArray[np.int32]
    loss_mask: NDArray[np.uint8]
    """1 for a token that the loss counts, 0 for one that the model only reads."""
    line: int = 0
    """Its number in its file, counted from 1; 0 when it is not of the dataset."""
    split: int = 0
    """Where the rejected row of a pair begins; 0 when it is no pair."""
    file: int = -1
    """Index of its file in PreparedManifest.row_files; -1 when it is not of the dataset."""

    @classmethod
    def pair(cls, chosen: "TokenRow", rejected: "TokenRow") -> "TokenRow":
        """Join two rows into a pair."""
        ids, mask = ((getattr(chosen, name), getattr(rejected, name)) for name in ("input_ids", "loss_mask"))
        return cls(np.concatenate(ids), np.concatenate(mask), chosen.line, len(chosen.input_ids), chosen.file)

    def answers(self) -> "tuple[TokenRow, TokenRow]":
        """Split a pair into its chosen and its rejected row."""
        return self.part(0, self.split), self.part(self.split, len(self.input_ids))

    def part(self, start: int, stop: int) -> "TokenRow":
        """Cut out some tokens as a row. The loss does not count the first one, which nothing predicts."""
        loss_mask = self.loss_mask[start:stop].copy()
        loss_mask[0] = 0
        return TokenRow(self.input_ids[start:stop], loss_mask, self.line, file=self.file)


@dataclass(frozen=True)
class RowStore:
    """All rows of a job, laid end to end: row i is [offsets[i], offsets[i + 1])."""

    input_ids: NDArray[np.int32]
    loss_mask: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    files: NDArray[np.int32]
    """Of each row, the index of the file that it is from; -1 when it is not of the dataset."""
    lines: NDArray[np.int64]
    """The number of each row in its file, counted from 1; the same for all parts of a row that was split."""
    splits: NDArray[np.int64]
    """Of each pair, where its rejected row begins; 0 of others."""
    learnt: NDArray[np.int32]
    """Of each row, how many of its tokens the loss counts."""
    row_files: tuple[ReadFile, ...] = ()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> TokenRow:
        span = slice(self.offsets[index], self.offsets[index + 1])
        return TokenRow(
            self.input_ids[span],
            self.loss_mask[span],
            int(self.lines[index]),
            int(self.splits[index]),
            int(self.files[index]),
        )


@dataclass(frozen=True)
class TokenRows:
    """Some of a job's rows, in an order of their own; a row may be there more than once."""

    store: RowStore
    chosen: NDArray[np.int64]
    """Of each row, its index in the store."""

    @classmethod
    def of(cls, rows: Iterable[TokenRow]) -> "TokenRows":
        """Lay rows end to end."""
        rows = list(rows)
        store = RowStore(
            np.concatenate([np.empty(0, np.int32), *(row.input_ids for row in rows)]),
            np.concatenate([np.empty(0, np.uint8), *(row.loss_mask for row in rows)]),
            np.cumsum([0, *(len(row.input_ids) for row in rows)], dtype=np.int64),
            np.array([row.file for row in rows], np.int32),
            np.array([row.line for row in rows], np.int64),
            np.array([row.split for row in rows], np.int64),
            np.array([row.loss_mask.sum() for row in rows], np.int32),
        )
        return cls(store, np.arange(len(rows)))

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> TokenRow:
        return self.store[int(self.chosen[index])]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return self.store.offsets[self.chosen + 1] - self.store.offsets[self.chosen]

    @cached_property
    def splits(self) -> NDArray[np.int64]:
        """Of each pair, where its rejected row begins; 0 of others."""
        return self.store.splits[self.chosen]

    def sizes(self, indices: Sequence[int], *, packed: bool) -> list[int]:
        """Tokens that rows take in a micro-batch, with the padding between the two sides of a pair unless packed."""
        chosen = np.asarray(indices, np.int64)
        lengths, splits = self.lengths[chosen], self.splits[chosen]
        if not packed:
            lengths = np.where(splits > 0, 2 * np.maximum(splits, lengths - splits), lengths)
        return [int(size) for size in lengths]

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence that the model sees."""
        return int(np.maximum(self.splits, self.lengths - self.splits).max())

    def longest_sequences(self, indices: Sequence[int]) -> list[int]:
        """Tokens of the longest sequence of each row: the two sides of a pair are two sequences."""
        chosen = np.asarray(indices, np.int64)
        lengths, splits = self.lengths[chosen], self.splits[chosen]
        return [int(length) for length in np.maximum(splits, lengths - splits)]


class RowWriter:
    """Writes rows one after another, so that only one of them has to be in memory."""

    def __init__(self, folder: Path) -> None:
        self._columns = {name: _Column(folder / f"{name}.npy", dtype) for name, dtype in _STORED.items()}
        self._end = 0
        self._columns["offsets"].append(np.zeros(1, np.int64))

    def __len__(self) -> int:
        return self._columns["lines"].length

    def append(self, rows: Sequence[TokenRow]) -> None:
        """Add rows."""
        if not rows:
            return
        ends = self._end + np.cumsum([len(row.input_ids) for row in rows], dtype=np.int64)
        self._end = int(ends[-1])
        added = {
            "input_ids": np.concatenate([row.input_ids for row in rows]),
            "loss_mask": np.concatenate([row.loss_mask for row in rows]),
            "offsets": ends,
            "files": np.array([row.file for row in rows], np.int32),
            "lines": np.array([row.line for row in rows], np.int64),
            "splits": np.array([row.split for row in rows], np.int64),
            "learnt": np.array([row.loss_mask.sum() for row in rows], np.int32),
        }
        for name, values in added.items():
            self._columns[name].append(values)

    def close(self) -> None:
        """Finish the files."""
        for column in self._columns.values():
            column.close()


class _Column:
    """A .npy file of one dimension that grows."""

    def __init__(self, path: Path, dtype: type[np.generic]) -> None:
        self._file = path.open("wb")
        self._dtype = np.dtype(dtype)
        self.length = 0
        self._write_header()

    def append(self, values: NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(values, self._dtype).tobytes())
        self.length += len(values)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()  # numpy leaves room in it for a length of 21 digits
        self._file.close()

    def _write_header(self) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._file, header)


_STORED: dict[str, type[np.generic]] = {
    "input_ids": np.int32, "loss_mask": np.uint8, "offsets": np.int64, "files": np.int32, "lines": np.int64,
    "splits": np.int64, "learnt": np.int32,
}  # fmt: skip
_IN_MEMORY_BYTES = 1024**3


def read_store(folder: Path, row_files: tuple[ReadFile, ...], in_memory: int = _IN_MEMORY_BYTES) -> RowStore:
    """The rows that a RowWriter has written.

    Args:
        folder: Where they are.
        row_files: Which files they are from.
        in_memory: Bytes of the largest file that is read. A larger one is mapped: its pages come from the disk when
            they are needed, and are no memory that somebody else can't have.
    """
    columns = {name: _read(folder / f"{name}.npy", in_memory) for name in _STORED}
    return RowStore(**columns, row_files=row_files)


def write_halves(folder: Path, training: NDArray[np.int64], validation: NDArray[np.int64]) -> None:
    """Write which rows are trained on, and which are held out. The caller writes the manifest, last."""
    for name, chosen in ((TRAINING, training), (VALIDATION, validation)):
        np.save(folder / name, chosen)


def read_halves(folder: Path, row_files: tuple[ReadFile, ...]) -> tuple[TokenRows, TokenRows]:
    """The rows to train on, and those that are held out."""
    store = read_store(folder, row_files)
    training, validation = (TokenRows(store, _read(folder / name)) for name in (TRAINING, VALIDATION))
    return training, validation


def _read(path: Path, in_memory: int = _IN_MEMORY_BYTES) -> NDArray[Any]:
    is_large = path.stat().st_size > in_memory
    return cast("NDArray[Any]", np.load(path, mmap_mode="r" if is_large else None, allow_pickle=False))
