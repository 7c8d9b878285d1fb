"""Lock files with hashes: one for each image, and one for the single environment that is used on this machine.

They are compiled from the extras in pyproject.toml and name no package index: everyone's own is used.
"""

from dataclasses import dataclass
from pathlib import Path

from dev.cache import REPOSITORY
from dev.commands import run
from dev.environment import LOCK, PYTHON_VERSION, uv
from dev.progress import step

OVERRIDES = Path("dev/overrides.txt")


@dataclass(frozen=True)
class Lock:
    """A lock file (relative to the checkout) and the extras of pyproject.toml that it locks."""

    file: Path
    extras: tuple[str, ...]


# The one for this machine comes first: the others follow its versions where they can.
EVERYTHING = Lock(LOCK.relative_to(REPOSITORY), ("operator", "trainer", "alone", "server-cpu", "dev"))
LOCKS = (
    EVERYTHING,
    Lock(Path("operator/requirements.lock"), ("operator",)),
    Lock(Path("trainer_image/requirements.lock"), ("trainer",)),
    Lock(Path("server_image/requirements.lock"), ("server",)),
    Lock(Path("server_image/requirements.cpu.lock"), ("server-cpu",)),
)


def lock_all(*, upgrade: bool = False) -> None:
    """Write every lock file anew; versions that are locked already stay unless `upgrade`."""
    for lock in LOCKS:
        step(f"locking {lock.file}")
        _compile(lock, upgrade=upgrade)


def _compile(lock: Lock, *, upgrade: bool) -> None:
    (REPOSITORY / lock.file).parent.mkdir(exist_ok=True)
    extras = [word for extra in lock.extras for word in ("--extra", extra)]
    overrides = ["--override", str(OVERRIDES)] if _takes_overrides(lock) else []
    constraints = ["--constraint", str(EVERYTHING.file)] if _follows_everything(lock) else []
    newer = ["--upgrade"] if upgrade else []
    run(
        [
            *(uv(), "pip", "compile", "pyproject.toml", "--output-file", str(lock.file)),
            *("--python-version", PYTHON_VERSION, "--generate-hashes", "--no-emit-index-url"),
            *("--no-emit-find-links", "--custom-compile-command", "python3 -m dev lock"),
            *(extras + overrides + constraints + newer),
        ],
        cwd=REPOSITORY,
    )


def _takes_overrides(lock: Lock) -> bool:
    """What runs on GPU nodes gets all that its packages ask for."""
    return "server-cpu" in lock.extras


def _follows_everything(lock: Lock) -> bool:
    """What is tested here is what the images get, but for the GPU server, which is another build of vLLM."""
    return lock is not EVERYTHING and lock.extras != ("server",)
