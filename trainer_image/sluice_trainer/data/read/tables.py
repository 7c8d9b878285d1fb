"""Files with columns: CSV and TSV as texts, Parquet and Arrow with types."""

import codecs
import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from sluice_api.reasons import Reason
from sluice_trainer.data.read.batch import BATCH_BYTES, BATCH_ROWS, Cells, TableRows
from sluice_trainer.data.read.json_values import MAX_ROW_BYTES
from sluice_trainer.data.row import BadRowError
from sluice_trainer.errors import StageError

_QUOTED = re.compile(rb'"[^"]*"')
_OF_NO_CELL = codecs.BOM_UTF8 + b' \t\r,;"'
"""What a line may have in which nothing is said."""


def separator_of(start: bytes) -> str | None:
    """What separates the cells of a file that begins so: the tab, comma or semicolon that its header has most of.

    None where the header has none of them.
    """
    header = next((line for line in start.split(b"\n") if line.strip(_OF_NO_CELL)), b"")
    header = _QUOTED.sub(b"", header)
    counts = {sign: header.count(sign.encode()) for sign in ("\t", ",", ";")}
    sign = max(counts, key=lambda each: counts[each])
    return sign if counts[sign] else None


def cells(stream: BinaryIO, name: str, separator: str) -> Iterator[Cells]:
    """The rows of a CSV file, with the lines that they begin in.

    Raises:
        StageError: DatasetInvalid: there is no header that can be used, a row is too long, or a quote is never closed.
    """
    csv.field_size_limit(MAX_ROW_BYTES)
    lines = _Lines(stream, name)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    header = _header(reader, lines)
    if header[:1] == ["sep="]:  # Excel's own first line, which says what separates cells
        header = _header(reader, lines)
    rows: list[tuple[int, Sequence[str] | BadRowError]] = []
    size = 0
    while True:
        line = lines.begin_row()
        try:
            row = next(reader, None)
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise lines.unclosed() from None
            rows.append((line, BadRowError(f"not CSV: {error}", 'Write a quote inside of a "text" twice')))
            continue
        if row is None:
            break
        if len(row) == len(header):
            rows.append((line, row))
            size += sum(map(len, row)) + len(row)
        elif row:
            problem = f"the row has {len(row)} cells, the header {len(header)}"
            remedy = 'Write as many, and put a text with a separator or a line end into "quotes"'
            rows.append((line, BadRowError(problem, remedy)))
        if len(rows) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield Cells(header, rows)
            rows, size = [], 0
    if rows:
        yield Cells(header, rows)


def _header(reader: Iterator[list[str]], lines: "_Lines") -> list[str]:
    """The first row that has something in a cell: the same that separator_of has looked at."""
    header: list[str] = []
    line = 1
    try:
        while not any(header):
            line = lines.begin_row()
            if (row := next(reader, None)) is None:
                return []
            header = [cell.strip() for cell in row]
    except csv.Error as error:
        why, remedy = str(error), "Mend it"
        if "new-line character" in why:
            why, remedy = "its lines end with CR alone", r"End them with LF: tr '\r' '\n' < file > rows.csv"
        raise lines.invalid(f", line {line}: the header is not CSV: {why}. {remedy}") from None
    _require_different(header, f"{lines.name}, line {line}: the header")
    return header


def _require_different(names: Sequence[str], what: str) -> None:
    """Refuse two columns of one name: only one of them would be read."""
    twice = next((name for name, count in Counter(names).items() if name and count > 1), None)
    if twice is not None:
        raise StageError(Reason.DATASET_INVALID, f'{what} has "{twice[:200]}" twice. Give each column its own name.')


class _Lines:
    """Lines of a file as text, of one row MAX_ROW_BYTES at most, over however many lines it goes.

    A byte that is no UTF-8 becomes half of a surrogate pair, which the row is refused for.
    """

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream = stream
        self.name = name
        self._number = 0
        self._begins = 1
        self._left = MAX_ROW_BYTES

    def begin_row(self) -> int:
        """Say that another row begins; which line is its first."""
        self._begins, self._left = self._number + 1, MAX_ROW_BYTES
        return self._begins

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._stream.readline(self._left + 1)
        self._left -= len(line)
        if not line:
            raise StopIteration
        self._number += 1
        if self._left < 0 and self._number > self._begins:
            raise self.unclosed()
        if self._left < 0:
            what = f", line {self._begins} is longer than {MAX_ROW_BYTES // 2**20} MiB. Cut the row into several"
            raise self.invalid(what)
        return (line.removeprefix(codecs.BOM_UTF8) if self._number == 1 else line).decode("utf-8", "surrogateescape")

    def unclosed(self) -> StageError:
        """The error for a row that goes on to the file's end, or further than any honest one."""
        return self.invalid(
            f", line {self._begins}: a quote that opens in this row is not closed within {MAX_ROW_BYTES // 2**20} MiB. "
            "Close it, and write a quote inside of a text twice"
        )

    def invalid(self, what: str) -> StageError:
        """The error for a file of which something is wrong."""
        return StageError(Reason.DATASET_INVALID, f"{self.name}{what}.")


@dataclass
class Progress:
    """How far a table is read. Where in the file its reader is says little: the end has to be read first, and a row
    group may be all of it."""

    done: float
    of: float

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return min(1.0, self.done / self.of) if self.of else 1.0


def parquet(stream: BinaryIO, name: str, at: Progress) -> Iterator[TableRows]:
    """The rows of a Parquet file, with their numbers. `at` counts rows.

    Raises:
        StageError: DatasetInvalid: it is damaged.
    """
    with _naming_damage(name):
        # Without these it reads a whole row group, which may be all of the file.
        file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=BATCH_BYTES)
        _require_different(file.schema_arrow.names, name)
        number = 1
        at.of = file.metadata.num_rows
        for group in range(file.num_row_groups):
            found = file.metadata.row_group(group)
            rows = _rows_at_once(found.total_byte_size, found.num_rows)
            for batch in file.iter_batches(rows, row_groups=[group], use_threads=False):
                for part in _parts(number, batch):
                    at.done = part.first - 1 + part.table.num_rows
                    yield part
                number += batch.num_rows


def parquet_bytes(stream: BinaryIO, name: str) -> int:
    """How many bytes a Parquet file says that its columns have, unpacked.

    Raises:
        StageError: DatasetInvalid: it is damaged.
    """
    with _naming_damage(name):
        metadata = pq.read_metadata(stream)
        return sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))


def arrow(
    stream: BinaryIO, name: str, at: Progress, position: Callable[[], int], *, is_file: bool
) -> Iterator[TableRows]:
    """The rows of an Arrow file or stream, with their numbers. `at` counts bytes, of which `position` says how many
    were read.

    Raises:
        StageError: DatasetInvalid: it is damaged.
    """
    with _naming_damage(name):
        if is_file:
            file = pa.ipc.open_file(stream)
            batches: Iterator[pa.RecordBatch] = (file.get_batch(index) for index in range(file.num_record_batches))
        else:
            file = pa.ipc.open_stream(stream)
            batches = iter(file)
        _require_different(file.schema.names, name)
        number = 1
        before = 0
        for batch in batches:
            batch.validate(full=True)  # it is read as it lies there, whatever its author has put there
            after = position()
            for part in _parts(number, batch):
                at.done = before + (after - before) * (part.first - number + part.table.num_rows) / batch.num_rows
                yield part
            number += batch.num_rows
            before = after


def _parts(first: int, batch: pa.RecordBatch) -> Iterator[TableRows]:
    """Some rows as several batches that are small as well when they are sent: a slice would take all others along."""
    rows = _rows_at_once(batch.nbytes, batch.num_rows)
    for start in range(0, batch.num_rows, rows):
        part = batch.slice(start, rows)
        yield TableRows(first + start, part if part.num_rows == batch.num_rows else part.take(_all(part)))


def _rows_at_once(size: int, rows: int) -> int:
    """Of so many rows of so many bytes together, as many as make a batch."""
    of_each = size // max(1, rows)
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, of_each)))


def _all(batch: pa.RecordBatch) -> pa.Array:
    return pa.array(range(batch.num_rows), pa.int32())


@contextmanager
def _naming_damage(name: str) -> Iterator[None]:
    """Turn what pyarrow raises into an error that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        why = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise StageError(
            Reason.DATASET_INVALID, f"{name} can't be read: {why}. It is cut off or damaged; copy it again."
        ) from error
