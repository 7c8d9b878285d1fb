"""s3://, gs:// and az:// addresses: a folder of an object store, which is read and written whole file by whole file."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sluice_files.credentials import NOTHING, Credentials

MAX_READ_BYTES = 64 * 2**20


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
            FileError: Invalid, the credentials are incomplete.
        """
        self.uri = uri.rstrip("/")
        raise NotImplementedError

    def names(self, prefix: str = "") -> list[ObjectFile]:
        """All files below, or below the folder `prefix`, sorted by name. An absent folder has none."""
        raise NotImplementedError

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        raise NotImplementedError

    def read(self, name: str) -> bytes:
        """The content of a small file: TooLarge above MAX_READ_BYTES."""
        raise NotImplementedError

    def ranges(self, name: str, starts: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        """Parts of a file, each from a start and as long as asked, or to the file's end."""
        raise NotImplementedError

    def fetch(self, name: str, path: Path) -> int:
        """Download a file: whole at `path`, or absent. Returns its size in bytes. TooLarge if the disk has no room."""
        raise NotImplementedError

    def put(self, path: Path, name: str) -> None:
        """Upload a file: whole at `name`, or absent; one that was there is replaced in one step."""
        raise NotImplementedError

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, as `put` does."""
        raise NotImplementedError

    def delete(self, names: Iterable[str]) -> None:
        """Delete files; one that is not there is no error."""
        raise NotImplementedError


def folder_and_name(uri: str) -> tuple[str, str]:
    """The address of the folder that a file or a pattern is in, and its name there: ("s3://b/data", "rows.jsonl")."""
    raise NotImplementedError
