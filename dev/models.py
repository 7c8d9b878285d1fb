"""The models that tests use: made once, in the environment, kept in the cache."""

import shutil
from pathlib import Path

from dev.cache import REPOSITORY, cache_folder, link, made_once
from dev.commands import run
from dev.environment import environment
from dev.progress import step

# Raised when the models are made differently.
VERSION = "1"
NAMES = ("smollm2-135m-instruct", "tiny", "tiny-other")


def models() -> list[Path]:
    """Make the models that aren't there; returns the folder of each, at a stable path."""
    python = environment() / "bin" / "python"
    folder = cache_folder() / "models"
    for name in NAMES:
        kept = folder / f"{name}-v{VERSION}"
        with made_once(kept) as making:
            if making is not None:
                step(f"making the model {name} (once) ...")
                run([python, "-m", "dev.make_model", name, making], cwd=REPOSITORY, env={"OMP_WAIT_POLICY": "PASSIVE"})
                _readable_by_everyone(making)
        link(folder / name, kept)
    return [folder / name for name in NAMES]


def place(name: str, volume: Path) -> Path:
    """Put a model into a volume under its name, unless it is there."""
    target = volume / name
    if not target.exists():
        source = (cache_folder() / "models" / name).resolve()
        unfinished = volume / f".{name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(source, unfinished)
        unfinished.rename(target)
    return target


def _readable_by_everyone(folder: Path) -> None:
    """Pods read them under other users' ids, and safetensors writes files that only their owner may read."""
    run(["chmod", "-R", "a+rX", folder])
