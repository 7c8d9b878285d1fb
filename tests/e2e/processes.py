"""The processes in pods, where pods run on this machine."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def kill(pod: str) -> bool:
    """SIGKILL every process of a pod's containers; False if there is none on this machine."""
    found = [process for process, environment in _environments() if f"HOSTNAME={pod}".encode() in environment]
    for process in found:
        with suppress(ProcessLookupError):  # the kernel ends a container with its first process
            os.kill(process, signal.SIGKILL)
    return bool(found)


def environments_with(text: str) -> list[int]:
    """Ids of the processes of this machine with a text anywhere in their environment."""
    return [process for process, values in _environments() if any(text.encode() in value for value in values)]


def _environments() -> Iterator[tuple[int, list[bytes]]]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            yield int(process.name), (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended
