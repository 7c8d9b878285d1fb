"""Waiting for something that can only be asked for, not listened to."""

import time
from collections.abc import Callable

from dev.cluster.processes import Processes
from dev.errors import DevError

INTERVAL = 0.1


def wait_until(what: str, happened: Callable[[], bool], processes: Processes, seconds: float) -> None:
    """Ask again and again until it has happened; ends early, with the log, if one of the programs has ended."""
    deadline = time.monotonic() + seconds
    while not happened():
        processes.must_run()
        if time.monotonic() > deadline:
            tails = "\n".join(f"{process.name}:\n{processes.tail(process.name)}" for process in processes)
            raise DevError(f"{what}: not within {seconds:.0f} s. What the logs say last:\n{tails}")
        time.sleep(INTERVAL)
