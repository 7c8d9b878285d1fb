"""Whether what is to be fetched fits: a disk that it fills is the node's, and other pods' too."""

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sluice_api.pods import disk_room
from sluice_files.errors import Failure, FileError

FULL = (errno.ENOSPC, errno.EDQUOT)


def require_room(uri: str, size: int, folder: Path) -> None:
    """Refuse what the disk has no room for, before it begins.

    Args:
        uri: for the message.
        size: bytes that would be written.
        folder: where to; it is there.

    Raises:
        FileError: TooLarge, with both sizes.
    """
    room = disk_room(folder)
    if size > room:
        disk, remedy = _disk_of(folder)
        raise FileError(
            Failure.TOO_LARGE,
            f"{uri}: its files have {size / 2**30:.1f} GiB, and {disk} has room for {room / 2**30:.1f}. {remedy}",
        )


@contextmanager
def fetching_to(folder: Path, uri: str) -> Iterator[None]:
    """Turn a disk that is full after all, as others write to it too, into a FileError.

    Args:
        folder: where to; it is there.
        uri: for the message.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        disk, remedy = _disk_of(folder)
        free = shutil.disk_usage(folder).free
        raise FileError(Failure.TOO_LARGE, f"{uri}: {disk} is full ({free:,} bytes are free). {remedy}") from error


def _disk_of(folder: Path) -> tuple[str, str]:
    """Which disk a folder is on, and what to do when it is full: a cache may be in a volume."""
    if folder.stat().st_dev == Path(tempfile.gettempdir()).stat().st_dev:
        return "this pod's disk", "Raise resources.ephemeralStorage, or copy it into a volume and use pvc://."
    return f"the volume at {folder}", "Make room in it, or use a larger one."
