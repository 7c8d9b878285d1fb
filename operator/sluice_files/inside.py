"""Reads a small file of a mounted volume, which others may change meanwhile."""

from pathlib import Path


class LeadsOutside(OSError):
    """The path is a link that leads out of its volume."""


def read_inside(root: Path, path: Path, most: int) -> bytes:
    """At most so many bytes of a file. Where it leads is asked of the open file: the name may be exchanged any time.

    Args:
        root: The volume, or the file itself, without links.
        path: The file.
        most: Bytes.

    Raises:
        LeadsOutside: it leads out of `root`.
        OSError: it can't be read.
    """
    with path.open("rb") as opened:
        if not Path(f"/proc/self/fd/{opened.fileno()}").readlink().is_relative_to(root):
            raise LeadsOutside(f"{path.name} leads out of its volume")
        return opened.read(most)
