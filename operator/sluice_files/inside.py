"""Reads a small file of a mounted volume, which others may change meanwhile."""

import errno
import os
import stat
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
        OSError: it can't be read, or is no regular file.
    """
    # O_NONBLOCK: to open a FIFO would be to wait for its writer.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        if not Path(f"/proc/self/fd/{opened.fileno()}").readlink().is_relative_to(root):
            raise LeadsOutside(f"{path.name} leads out of its volume")
        return opened.read(most)
