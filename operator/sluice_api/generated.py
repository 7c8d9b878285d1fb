"""Files made from the models: written, or checked to be current."""

import difflib
import sys
from collections.abc import Mapping
from pathlib import Path


def write(files: Mapping[Path, str]) -> None:
    """Write what differs."""
    for path, text in files.items():
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            sys.stdout.write(f"written: {path}\n")


def stale(files: Mapping[Path, str]) -> str:
    """What would change in the files as a unified diff; empty when all are current."""
    diffs = (
        difflib.unified_diff(
            path.read_text().splitlines(keepends=True) if path.exists() else [],
            text.splitlines(keepends=True),
            f"{path} (as it is)",
            f"{path} (as the models say)",
        )
        for path, text in files.items()
    )
    return "".join(line for diff in diffs for line in diff)


def check(files: Mapping[Path, str], remedy: str) -> int:
    """Print what is stale; the exit status."""
    difference = stale(files)
    if not difference:
        return 0
    sys.stdout.write(f"{difference}Generated files are stale. Run: {remedy}\n")
    return 1
