"""Where a stage finds files: in claims, and on the pod's own disk."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from sluice_api.reasons import Reason
from sluice_api.sources import CONFIG_MAPS, VOLUMES, ConfigMapKey, VolumePath
from sluice_api.stages import ExitCode
from sluice_files.room import FULL
from sluice_trainer.errors import StageError


def mounted(path: VolumePath) -> Path:
    """A claim's path as this process sees it. SLUICE_VOLUMES moves the root, for runs outside a pod."""
    return Path(os.environ.get("SLUICE_VOLUMES", str(VOLUMES))) / path.claim / path.path


def mounted_config_map(key: ConfigMapKey) -> Path:
    """A ConfigMap's folder as this process sees it. SLUICE_CONFIG_MAPS moves the root, for runs outside a pod."""
    return Path(os.environ.get("SLUICE_CONFIG_MAPS", str(CONFIG_MAPS))) / key.name


def resolve_in_claim(path: VolumePath) -> Path | None:
    """Find the file or folder, following links; None if there is none, or a link leads out of the claim."""
    claim = mounted(VolumePath(path.claim, "")).resolve()
    found = mounted(path).resolve()
    return found if found.exists() and found.is_relative_to(claim) else None


def why_not_found(path: VolumePath, what: str) -> str:
    """Why `resolve_in_claim` found no file or folder, as two sentences for an error message: what is there instead."""
    steps = [PurePosixPath(path.path), *PurePosixPath(path.path).parents]
    if link := next((step for step in steps if mounted(VolumePath(path.claim, str(step))).is_symlink()), None):
        return (
            f"{path.claim}/{link} is a link that leads out of the claim, or nowhere, and is not followed. Put the "
            f"{what} itself there."
        )
    return f"there is no such {what}. {_siblings(path)}"


def _siblings(path: VolumePath) -> str:
    parent = mounted(path).parent
    claim = mounted(VolumePath(path.claim, ""))
    while not parent.is_dir() and parent.is_relative_to(claim):
        parent = parent.parent
    if not parent.is_dir() or not parent.is_relative_to(claim):
        return f"The claim {path.claim} is not mounted."
    names = sorted(child.name for child in parent.iterdir() if not child.name.startswith("."))
    where = f"{path.claim}/{parent.relative_to(claim)}".removesuffix("/.")
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"{where} has: {shown}." if names else f"{where} is empty."


def scratch_folder(name: str) -> Path:
    """Make a folder on the pod's own disk."""
    folder = Path(tempfile.gettempdir()) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def writing_scratch(what: str, reason: Reason = Reason.TRAINER_FAILED) -> Iterator[None]:
    """Turn a full disk of the pod into an error that names it, also where the output is written at the same time:
    WorkFolder.writing would take it for the output's.

    Args:
        what: for the message: what is written.
        reason: of the error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        folder = tempfile.gettempdir()
        raise StageError(
            reason,
            f"{what}: this pod's disk, {folder}, is full ({shutil.disk_usage(folder).free:,} bytes are free). Raise "
            "resources.ephemeralStorage, or make room on the node.",
            ExitCode.INTERNAL,
        ) from error
