"""Where everything that is made once and kept lives: `$SLUICE_CACHE`, or `~/.cache/sluice`."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def cache_folder() -> Path:
    """The cache folder of this user, made if it isn't there."""
    configured = os.environ.get("SLUICE_CACHE")
    folder = Path(configured).expanduser() if configured else Path.home() / ".cache" / "sluice"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


@contextmanager
def made_once(target: Path) -> Iterator[Path | None]:
    """Give a fresh folder to fill, which becomes `target` only if the body succeeds; None if it exists already.

    A half-made folder is never taken for a whole one, and two processes never make the same one at once.
    """
    if target.exists():
        yield None
        return
    with locked(target.name):
        if target.exists():
            yield None
            return
        unfinished = target.with_name(target.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield unfinished
        unfinished.rename(target)


@contextmanager
def locked(name: str, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of this name, among all processes that use this cache; waits for its holder.

    Args:
        shared: hold it together with all others who share it.
    """
    folder = cache_folder() / "locks"
    folder.mkdir(exist_ok=True)
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


def link(stable: Path, target: Path) -> None:
    """Point the symbolic link `stable` at `target`, in one atomic step."""
    stable.parent.mkdir(parents=True, exist_ok=True)
    if stable.is_symlink() and stable.readlink() == target:
        return
    fresh = stable.with_name(f".{stable.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(stable)
