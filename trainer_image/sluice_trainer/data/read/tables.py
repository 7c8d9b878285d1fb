"""Files with columns: CSV and TSV as texts, Parquet and Arrow with types."""

import codecs
import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from sluice_api.reasons import Reason
from sluice_trainer.data.read.batch import BATCH_BYTES, BATCH_ROWS, Cells, TableRows
from sluice_trainer.data.read.json_values import MAX_ROW_BYTES
from sluice_trainer.data.row import BadRowError
from sluice_trainer.errors import StageError

_QUOTED = re.compile(r'"[^"]*"')


def separator_of(header: str) -> str | None:
    """What separates the cells of a header: a tab, a comma or a semicolon, whichever is there most; None without."""
    header = _QUOTED.sub("", header)
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
    if header[:1] == ["sep="]:  # Excel's own first line, which says what separates cells
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
        why, remedy = str(error), "Mend it"
        if "new-line character" in why:
            why, remedy = "its lines end with CR alone", r"End them with LF: tr '\r' '\n' < file > rows.csv"
        raise StageError(Reason.DATASET_INVALID, f"{name}, line 1: the header is not CSV: {why}. {remedy}.") from None
    _require_different(header, f"{name}, line 1: the header")
    return header


def _require_different(names: Sequence[str], what: str) -> None:
    """Refuse two columns of one name: only one of them would be read."""
    if twice := next((name for name in names if name and names.count(name) > 1), None):
        raise StageError(Reason.DATASET_INVALID, f'{what} has "{twice}" twice. Give each column its own name.')


def _lines(stream: BinaryIO) -> Iterator[str]:
    """Lines as text. A byte that is no UTF-8 becomes half of a surrogate pair, which the row is refused for."""
    first = True
    while line := stream.readline(MAX_ROW_BYTES):
        if first:
            line, first = line.removeprefix(codecs.BOM_UTF8), False
        yield line.decode("utf-8", "surrogateescape")


def parquet(stream: BinaryIO, name: str) -> Iterator[TableRows]:
    """The rows of a Parquet file, with their numbers.

    Raises:
        StageError: DatasetInvalid: it is damaged.
    """
    with _naming_damage(name):
        # Without these it reads a whole row group, which may be all of the file.
        file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=BATCH_BYTES)
        _require_different(file.schema_arrow.names, name)
        number = 1
        for group in range(file.num_row_groups):
            found = file.metadata.row_group(group)
            rows = _rows_at_once(found.total_byte_size, found.num_rows)
            for batch in file.iter_batches(rows, row_groups=[group], use_threads=False):
                yield from _parts(number, batch)
                number += batch.num_rows


def arrow(stream: BinaryIO, name: str, *, is_file: bool) -> Iterator[TableRows]:
    """The rows of an Arrow file or stream, with their numbers.

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
        for batch in batches:
            batch.validate(full=True)  # it is read as it lies there, whatever its author has put there
            yield from _parts(number, batch)
            number += batch.num_rows


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
