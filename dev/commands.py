"""Running other programs: quietly when they succeed, with their last words when they don't."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from dev.errors import DevError


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
) -> str:
    """Run a program to its end and return what it printed; `env` is added to this process's own environment."""
    try:
        ended = subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            input=stdin,
            text=True,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError as missing:
        raise DevError(f"{command[0]} is not installed, or not on PATH") from missing
    if ended.returncode != 0:
        words = (ended.stderr.strip() or ended.stdout.strip()).splitlines()[-15:]
        shown = " ".join(str(word) for word in command)
        raise DevError(f"`{shown[:300]}` ended with {ended.returncode}:\n  " + "\n  ".join(words))
    return ended.stdout


@contextmanager
def printing(command: Sequence[str | Path]) -> Iterator[Iterator[str]]:
    """Run a program for as long as the block lasts; gives the lines that it prints, as they come."""
    words = [str(word) for word in command]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield (line.rstrip() for line in process.stdout or ())
        finally:
            process.terminate()


def succeeds(command: Sequence[str | Path]) -> bool:
    """Whether the program exists and exits with 0."""
    try:
        ended = subprocess.run(
            [str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        )
    except FileNotFoundError:
        return False
    return ended.returncode == 0


def need(program: str, remedy: str) -> str:
    """The full path of a program, or an error that says how to get it."""
    found = shutil.which(program)
    if found is None:
        raise DevError(f"{program} is not installed: {remedy}")
    return found
