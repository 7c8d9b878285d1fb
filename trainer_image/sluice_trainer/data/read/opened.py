"""Opens a file of rows, unpacked if need be: gzip and zstd, known by their first bytes and not by a name."""

import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from sluice_api.reasons import Reason
from sluice_trainer.data.read.row_file import RowFile
from sluice_trainer.errors import StageError

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"
"""Behind the first byte of a frame without content, with which pzstd begins a file."""
_FREE_BYTES = 64 * 1024 * 1024
_MOST_TIMES = 200
"""How much larger than its packed form a file may become, beyond _FREE_BYTES. Text becomes 3 to 20 times as large; a
file made to fill a disk or a memory, more than a thousand times."""
_BUFFER_BYTES = 1024 * 1024


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Bounded(io.RawIOBase):
    """What a packed file becomes, until it is more than any honest one."""

    def __init__(self, unpacked: _Readable, file: RowFile, packed_bytes: int) -> None:
        self._unpacked = unpacked
        self._file = file
        self._left = _FREE_BYTES + _MOST_TIMES * packed_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        """Fill the buffer; with less only at the end, so that a look at the beginning sees as much as there is."""
        done = 0
        while done < len(buffer) and (block := self._read(len(buffer) - done)):
            buffer[done : done + len(block)] = block
            done += len(block)
        return done

    def _read(self, size: int) -> bytes:
        try:
            block = self._unpacked.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile, pa.ArrowException, OSError) as error:
            raise StageError(
                Reason.DATASET_INVALID,
                f"{self._file.name} can't be unpacked: {error}. It is cut off or damaged; copy it again.",
            ) from error
        self._left -= len(block)
        if self._left < 0:
            raise StageError(
                Reason.DATASET_INVALID,
                f"{self._file.name} becomes more than {_MOST_TIMES} times as large when it is unpacked, as no text "
                "does. Unpack it yourself, and look at it.",
            )
        return block


def _opened(file: RowFile) -> io.FileIO:
    try:
        return io.FileIO(file.path)
    except OSError as error:
        raise StageError(
            Reason.DATASET_INVALID, f"{file.name}: {error.strerror} for uid {os.getuid()}. Let that uid read it."
        ) from error


@contextmanager
def opened(file: RowFile) -> "Iterator[tuple[io.BufferedReader[Any], bool, Callable[[], int]]]":
    """The file's bytes, unpacked; whether they were packed; and what says how many of the packed ones were read.

    Raises:
        StageError: DatasetInvalid: it is damaged, or became a link.
    """
    with io.BufferedReader(_opened(file), _BUFFER_BYTES) as raw:
        if Path(f"/proc/self/fd/{raw.fileno()}").readlink() != file.path:  # it was checked where it leads, before
            raise StageError(
                Reason.DATASET_INVALID,
                f"{file.path.name} was replaced by a link while it was read. Put the file there.",
            )
        start = raw.peek(8)[:8]
        if start.startswith(_GZIP):
            unpacked: _Readable = gzip.GzipFile(fileobj=raw)
        elif start.startswith(_ZSTD) or start[1:4] == _ZSTD_SKIPPABLE:
            unpacked = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
        else:
            yield raw, False, raw.raw.tell
            return
        size = os.fstat(raw.fileno()).st_size
        yield io.BufferedReader(_Bounded(unpacked, file, size), _BUFFER_BYTES), True, raw.raw.tell
