"""Whether what is to be fetched fits, before it begins: a disk that it fills is the node's, and other pods' too."""

from pathlib import Path

from sluice_api.pods import disk_room
from sluice_files.errors import Failure, FileError


def require_room(uri: str, size: int, folder: Path) -> None:
    """Refuse what the disk has no room for.

    Args:
        uri: for the message.
        size: bytes that would be written.
        folder: where to; it is there.

    Raises:
        FileError: TooLarge, with both sizes.
    """
    room = disk_room(folder)
    if size > room:
        raise FileError(
            Failure.TOO_LARGE,
            f"{uri}: its files have {size / 2**30:.1f} GiB, and this pod's disk has room for {room / 2**30:.1f}. Raise "
            "resources.ephemeralStorage, or copy it into a volume and use pvc://.",
        )
