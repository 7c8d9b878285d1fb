"""Rows of one file that follow each other, as they were read: they are decoded where a processor has time for it."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from sluice_trainer.data.read import jsons
from sluice_trainer.data.read.json_values import MAX_ROW_BYTES
from sluice_trainer.data.row import BadRowError, Fields

Decoded = tuple[int, Fields | BadRowError]
"""A row's number in its file, counted from 1, with its fields or with why it has none."""

BATCH_ROWS = 256
BATCH_BYTES = 1024 * 1024


class Batch(Protocol):
    """Some rows of a file. It can be sent to another process."""

    def decoded(self) -> Iterator[Decoded]:
        """Each row, in order."""


@dataclass(frozen=True)
class JsonLines:
    """Lines of a JSONL file."""

    lines: Sequence[tuple[int, bytes]]

    def decoded(self) -> Iterator[Decoded]:
        """Parse each line."""
        for number, line in self.lines:
            try:
                yield number, jsons.fields_of_line(line)
            except BadRowError as error:
                yield number, error


@dataclass(frozen=True)
class JsonValues:
    """Values of a JSON array, or of JSON objects that follow each other."""

    values: Sequence[tuple[int, object]]

    def decoded(self) -> Iterator[Decoded]:
        """Check that each is an object."""
        for number, value in self.values:
            try:
                yield number, value if isinstance(value, BadRowError) else jsons.require_object(value)
            except BadRowError as error:
                yield number, error


@dataclass(frozen=True)
class Cells:
    """Rows of a CSV or TSV file, with as many cells as the header. All values are texts."""

    header: Sequence[str]
    rows: Sequence[tuple[int, Sequence[str] | BadRowError]]

    def decoded(self) -> Iterator[Decoded]:
        """Give each cell its name."""
        for number, cells in self.rows:
            if isinstance(cells, BadRowError):
                yield number, cells
            elif list(cells) == list(self.header):
                yield number, BadRowError("the row is the header once more", "Remove it")
            else:
                fields = dict(zip(self.header, cells, strict=True))
                try:
                    jsons.require_unicode(fields)
                except BadRowError:
                    yield number, BadRowError("not UTF-8", "Save the file as UTF-8")
                else:
                    yield number, fields


@dataclass(frozen=True)
class TableRows:
    """Rows of a Parquet or Arrow file."""

    first: int
    table: pa.RecordBatch

    def decoded(self) -> Iterator[Decoded]:
        """Make Python values of each row."""
        for index in range(self.table.num_rows):
            number, row = self.first + index, self.table.slice(index, 1)
            if _size(row) > MAX_ROW_BYTES:
                size = f"the row has more than {MAX_ROW_BYTES // 2**20} MiB"
                yield number, BadRowError(size, "Cut it into several")
                continue
            try:
                fields = {name: _value(column) for name, column in zip(row.schema.names, row.columns, strict=True)}
            except UnicodeDecodeError as error:
                yield number, BadRowError(f"not UTF-8 (byte {error.start + 1} of a text)", "Save the texts as UTF-8")
            except (ArithmeticError, ValueError, LookupError, pa.ArrowException) as error:  # such as the year 150,000
                yield number, BadRowError(f"a value can't be read: {error}", "Leave its column out")
            else:
                yield number, _without_nulls(fields)


def _value(column: pa.Array) -> Any:
    """The one value of a column. Whole numbers are not made one by one: rows of tokens have nothing else."""
    kind = column.type
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and kind.value_type in _WHOLE_NUMBERS:
        numbers = column[0].values
        if numbers is not None and not numbers.null_count:
            return array("q", numbers.cast(pa.int64()).to_numpy().tobytes())
    (value,) = column.to_pylist(maps_as_pydicts="strict")
    return value


_WHOLE_NUMBERS = (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32())
"""Those that an array of 64 bits holds."""


def _size(row: pa.RecordBatch) -> int:
    """Bytes of one row; of what is written once for many rows nothing is counted."""
    return sum(column.nbytes for column in row.columns if not pa.types.is_dictionary(column.type))


def _without_nulls(value: Any) -> Any:
    """The value without the fields that are null: in a table every row has the fields of all others."""
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value
