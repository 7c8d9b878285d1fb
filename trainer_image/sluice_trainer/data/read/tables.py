"""Files with columns: CSV and TSV as texts, Parquet and Arrow with types."""

import codecs
import csv
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


def separator_of(header: str) -> str | None:
    """What separates the cells of a header: a tab, a comma or a semicolon, whichever is there most; None without."""
    counts = {sign: header.count(sign) for sign in ("\t", ",", ";")}
    sign = max(counts, key=lambda each: counts[each])
    return sign if counts[sign] else None


def cells(stream: BinaryIO, name: str, separator: str) -> Iterator[Cells]:
    """The rows of a CSV file, with the lines that they begin in.

    Raises:
        StageError: DatasetInvalid: there is no header that can be used, or a quote is never closed.
    """
    csv.field_size_limit(MAX_ROW_BYTES)
    reader = csv.reader(_lines(stream), delimiter=separator, strict=True)
    header = _header(reader, name)
    rows: list[tuple[int, Sequence[str] | BadRowError]] = []
    size = 0
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            if "unexpected end of data" in str(error) or "field larger than" in str(error):
                raise StageError(
                    Reason.DATASET_INVALID,
                    f"{name}, line {line}: a quote that opens in this row is not closed within "
                    f"{MAX_ROW_BYTES // 2**20} MiB. Close it, and write a quote inside of a text twice.",
                ) from None
            rows.append((line, BadRowError(f"not CSV: {error}", 'Write a quote inside of a "text" twice')))
            continue
        if row is None:
            break
        if row:
            rows.append((line, row))
            size += sum(map(len, row))
        if len(rows) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield Cells(header, rows)
            rows, size = [], 0
    if rows:
        yield Cells(header, rows)


def _header(reader: Iterator[list[str]], name: str) -> list[str]:
    try:
        header = [cell.strip() for cell in next(filter(None, reader), [])]
    except csv.Error as error:
        raise StageError(Reason.DATASET_INVALID, f"{name}, line 1: the header is not CSV: {error}. Mend it.") from None
    twice = next((cell for cell in header if cell and header.count(cell) > 1), None)
    if twice is not None:
        raise StageError(
            Reason.DATASET_INVALID, f'{name}, line 1: the header has "{twice}" twice. Give each column its own name.'
        )
    return header


def _lines(stream: BinaryIO) -> Iterator[str]:
    """Lines as text. A byte that is no UTF-8 becomes half of a surrogate pair, which the row is refused for."""
    first = True
    while line := stream.readline(MAX_ROW_BYTES):
        if first:
            line, first = line.removeprefix(codecs.BOM_UTF8), False
        yield line.decode("utf-8", "surrogateescape")


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
            batches = iter(pa.ipc.open_stream(stream))
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
