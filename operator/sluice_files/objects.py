"""s3://, gs:// and az:// addresses: a folder of an object store, which is read and written whole file by whole file."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import obstore
from obstore.exceptions import BaseError

from sluice_files.credentials import NOTHING, Credentials
from sluice_files.errors import Failure, FileError
from sluice_files.refusals import Asked, refusal
from sluice_files.room import fetching_to, require_room
from sluice_files.stores import open_store

MAX_READ_BYTES = 64 * 2**20
MAX_FILES = 1_000_000
"""Of one listing: all are in memory at once, and take 400 MiB."""

_PIECE = 8 * 2**20
"""Bytes of one request. A larger file is fetched in pieces, so that no request takes long, and one that fails is made
again without the rest."""
_PART = 8 * 2**20
"""The same of a file that is sent. S3 takes no part below 5 MiB but the last."""
_MOST_PARTS = 9_000
"""S3 takes 10,000."""
_AT_ONCE = 4


@dataclass(frozen=True)
class ObjectFile:
    """A file of an object store."""

    name: str
    """Below its folder, such as data/rows.jsonl."""
    size: int
    """In bytes."""
    etag: str
    """Differs for other bytes of the same name; empty where the store has none."""


class ObjectFolder:
    """What lies below an address. All its calls block, are safe to make from several threads, and raise FileError."""

    def __init__(self, uri: str, credentials: Credentials = NOTHING) -> None:
        """Asks nobody yet.

        Args:
            uri: s3://bucket or s3://bucket/path, gs:// and az:// (container) too.
            credentials: read_credentials of that address.

        Raises:
            FileError: Refused: the credentials are incomplete.
        """
        self.uri = uri.rstrip("/")
        self._credentials = credentials
        self._store, self._host = open_store(self.uri, credentials)

    def names(self, prefix: str = "", most: int = MAX_FILES) -> list[ObjectFile]:
        """All files below, or below the folder `prefix`, sorted by name. An absent folder has none.

        What stands for a folder itself, as consoles make them, is no file. TooLarge if there are more than `most`.
        """
        found: list[ObjectFile] = []
        with self._asking(prefix):
            for page in obstore.list(self._store, prefix or None, chunk_size=1000):
                found += (ObjectFile(each["path"], each["size"], each["e_tag"] or "") for each in page)
                if len(found) > most:
                    raise FileError(
                        Failure.TOO_LARGE,
                        f"{self._address(prefix)}: more than {most:,} files are there. Name a folder in it.",
                    )
        if not all(file.size for file in found):
            folders = {str(folder) for file in found for folder in PurePosixPath(file.name).parents} | {""}
            found = [file for file in found if file.size or file.name not in folders]
        return sorted(found, key=lambda file: file.name)

    def exists(self, name: str) -> bool:
        """Whether there is such a file. It is not asked for by HEAD: that answer never says why it is a refusal."""
        try:
            with self._asking(name):
                obstore.get(self._store, name)
        except FileError as error:
            if error.failure is Failure.NOT_FOUND:
                return False
            raise
        return True

    def read(self, name: str) -> bytes:
        """The content of a small file: TooLarge above MAX_READ_BYTES."""
        with self._asking(name):
            answer = obstore.get(self._store, name)
            if answer.meta["size"] > MAX_READ_BYTES:
                raise FileError(
                    Failure.TOO_LARGE,
                    f"{self._address(name)}: it has {answer.meta['size']:,} bytes, and {MAX_READ_BYTES:,} are read. "
                    "Make it smaller.",
                )
            return bytes(answer.bytes())

    def ranges(self, name: str, starts: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        """Parts of a file, each from a start and as long as asked, or to the file's end."""
        with self._asking(name):
            return [bytes(part) for part in obstore.get_ranges(self._store, name, starts=starts, lengths=lengths)]

    def fetch(self, name: str, path: Path) -> int:
        """Download a file: whole at `path`, or absent. Returns its size in bytes. TooLarge if the disk has no room."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
        try:
            with (
                self._asking(name),
                fetching_to(path.parent, self._address(name)),
                unfinished.open("wb", buffering=0) as file,
            ):
                size = self._copy(name, file.fileno(), path.parent)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        return size

    def put(self, path: Path, name: str) -> None:
        """Upload a file: whole at `name`, or absent; one that was there is replaced in one step."""
        part = max(_PART, -(-path.stat().st_size // _MOST_PARTS))
        with self._asking(name, writes=True):
            obstore.put(self._store, name, path, chunk_size=part, max_concurrency=_AT_ONCE)

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, as `put` does."""
        with self._asking(name, writes=True):
            obstore.put(self._store, name, data, use_multipart=False)

    def delete(self, names: Iterable[str]) -> None:
        """Delete files; one that is not there is no error."""
        for name in names:
            with self._asking(name, writes=True), suppress(FileNotFoundError):
                obstore.delete(self._store, name)

    def _copy(self, name: str, target: int, folder: Path) -> int:
        """Copy a file into an open one; pieces of the very same bytes, if there are several."""
        answer = obstore.get(self._store, name)
        whole = answer.meta
        size = whole["size"]
        require_room(self._address(name), size, folder)
        if size <= _PIECE:
            _write_all(target, memoryview(answer.bytes()), 0)
            return size
        del answer

        def copy(start: int) -> None:
            part = obstore.get(self._store, name, options={"range": (start, min(start + _PIECE, size))})
            if part.meta != whole:  # size, time and etag, as far as the store has them
                raise FileError(
                    Failure.UNREACHABLE,
                    f"{self._address(name)}: the file was replaced while it was read. Leave it until the job has it.",
                )
            _write_all(target, memoryview(part.bytes()), start)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for piece in [pool.submit(copy, start) for start in range(0, size, _PIECE)]:
                try:
                    piece.result()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
        return size

    def _address(self, name: str) -> str:
        return f"{self.uri}/{name}" if name else self.uri

    @contextmanager
    def _asking(self, name: str, *, writes: bool = False) -> Iterator[None]:
        """Turn what the library raises into a FileError."""
        try:
            yield
        except (BaseError, FileNotFoundError, ValueError) as error:
            asked = Asked(self._address(name), self._host, self._credentials, writes)
            raise refusal(error, asked) from None  # the library's text has the request, and may have its signature


def folder_and_name(uri: str) -> tuple[str, str]:
    """The address of the folder that a file is in, and its name there: ("s3://b/data", "rows.jsonl")."""
    folder, _, name = uri.rstrip("/").rpartition("/")
    return folder, name


def _write_all(target: int, left: memoryview, start: int) -> None:
    """Write bytes at a place of an open file: the kernel may take only some of them, and say so in a number."""
    while left:
        written = os.pwrite(target, left, start)
        left, start = left[written:], start + written
