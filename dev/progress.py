"""One line for each step, with the time since the command began: `[ 2m10s] building ...`."""

import sys
import time

_BEGAN = time.monotonic()


def elapsed() -> str:
    """Time since the command began, as ` 2m10s`."""
    seconds = int(time.monotonic() - _BEGAN)
    return f"{seconds // 60:2d}m{seconds % 60:02d}s"


def step(what: str) -> None:
    """Say what is being done now."""
    sys.stderr.write(f"[{elapsed()}] {what}\n")  # one write: several threads say what they do
