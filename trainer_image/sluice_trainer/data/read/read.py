"""The rows of a file, in batches: what it is packed in and how it holds rows is found out from its content."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from sluice_api.dataset import FileFormat
from sluice_api.reasons import Reason
from sluice_trainer.data.read import jsons, tables
from sluice_trainer.data.read.batch import BATCH_BYTES, BATCH_ROWS, Batch, JsonLines, JsonValues
from sluice_trainer.data.read.json_values import MAX_ROW_BYTES, JsonStream
from sluice_trainer.data.read.kind import LOOKED_AT_BYTES, file_format_of, is_arrow_file, is_parquet
from sluice_trainer.data.read.opened import opened
from sluice_trainer.data.read.row_file import RowFile
from sluice_trainer.errors import StageError

_UNITS = {FileFormat.JSONL: "line", FileFormat.CSV: "line", FileFormat.TSV: "line"}


def unit_of(file_format: FileFormat) -> str:
    """What the numbers of a file's rows count: lines, or rows where a file has no lines."""
    return _UNITS.get(file_format, "row")


@dataclass(frozen=True)
class Reading:
    """A file that is being read."""

    file_format: FileFormat
    batches: Iterator[Batch]
    done: Callable[[], float]
    """Which part of the file was read, from 0 to 1."""


@contextmanager
def read(file: RowFile, said: FileFormat) -> Iterator[Reading]:
    """Read a file: what it is and its batches, for as long as the block lasts.

    Raises:
        StageError: DatasetInvalid: it is no file of rows, or damaged.
    """
    with opened(file) as (stream, is_packed, position):
        start = stream.peek(LOOKED_AT_BYTES)[:LOOKED_AT_BYTES]
        file_format = file_format_of(file, start, said)
        if is_packed and file_format in (FileFormat.PARQUET, FileFormat.ARROW) and not _streams(file_format, start):
            raise StageError(
                Reason.DATASET_INVALID,
                f"{file.name} is {file_format} inside of gzip or zstd. Unpack it: it is packed inside already.",
            )
        size = file.path.stat().st_size
        at = tables.Progress(0, size)
        match file_format:
            case FileFormat.PARQUET:
                yield Reading(file_format, tables.parquet(stream, file.name, at), lambda: at.share)
            case FileFormat.ARROW:
                rows = tables.arrow(stream, file.name, at, position, is_file=is_arrow_file(start))
                yield Reading(file_format, rows, lambda: at.share)
            case _:
                batches = _batches(stream, file, file_format, start)
                yield Reading(file_format, batches, lambda: tables.Progress(position(), size).share)


PACKED_TIMES = 4
"""How much larger packed text is taken to become: it becomes 3 to 20 times as large."""


def about_bytes(file: RowFile) -> int:
    """About how many bytes the rows of a file have when they are unpacked, without reading them.

    Of Parquet that is what its end says of its columns, and of gzip and zstd PACKED_TIMES as many as the file has.

    Raises:
        StageError: DatasetInvalid: it can't be opened, or is damaged.
    """
    size = file.path.stat().st_size
    with opened(file) as (stream, is_packed, _):
        if is_packed:
            return PACKED_TIMES * size
        return max(size, tables.parquet_bytes(stream, file.name)) if is_parquet(stream.peek(8)) else size


def _streams(file_format: FileFormat, start: bytes) -> bool:
    return file_format is FileFormat.ARROW and not is_arrow_file(start)


def _batches(stream: BinaryIO, file: RowFile, file_format: FileFormat, start: bytes) -> Iterator[Batch]:
    match file_format:
        case FileFormat.CSV | FileFormat.TSV:
            separator = "\t" if file_format is FileFormat.TSV else tables.separator_of(start) or ","
            return tables.cells(stream, file.name, separator)
        case FileFormat.JSON:
            return _values(JsonStream(stream, file.name))
        case _:
            return _lines(stream, file.name)


def _lines(stream: BinaryIO, name: str) -> Iterator[Batch]:
    lines: list[tuple[int, bytes]] = []
    size = number = 0
    while line := stream.readline(MAX_ROW_BYTES):
        number += 1
        if len(line) >= MAX_ROW_BYTES:
            raise StageError(
                Reason.DATASET_INVALID,
                f"{name}, line {number} is longer than {MAX_ROW_BYTES // 2**20} MiB. "
                f"{jsons.remedy_for_large(line[:LOOKED_AT_BYTES].decode('utf-8', 'replace'))}.",
            )
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            lines.append((number, line.rstrip()))
            size += len(line)
        if len(lines) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield JsonLines(lines)
            lines, size = [], 0
    if lines:
        yield JsonLines(lines)


def _values(stream: JsonStream) -> Iterator[Batch]:
    values: list[tuple[int, object]] = []
    before = 0
    for numbered in stream.values():
        values.append(numbered)
        if len(values) >= BATCH_ROWS or stream.characters - before >= BATCH_BYTES:
            yield JsonValues(values)
            values, before = [], stream.characters
    if values:
        yield JsonValues(values)
