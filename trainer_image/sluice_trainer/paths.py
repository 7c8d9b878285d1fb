"""Where a stage finds and leaves files."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError

from sluice_api import meta
from sluice_api.reasons import Reason
from sluice_api.sources import CONFIG_MAPS, VOLUMES, ConfigMapKey, VolumePath, volume_path
from sluice_api.stages import ExitCode, StageSpec
from sluice_trainer.errors import StageError

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT)


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


def work_folder(stage: StageSpec) -> Path:
    """The job's own folder in the output's claim: prepared/, checkpoints/ and export/ are in it."""
    return mounted(_output(stage)) / meta.work_folder(stage.name, stage.uid)


def work_folder_uri(stage: StageSpec) -> str:
    """The address of that folder."""
    return f"{stage.spec.output.uri.rstrip('/')}/{meta.work_folder(stage.name, stage.uid)}"


def make_work_folder(stage: StageSpec) -> Path:
    """Make the job's own folder, and check that it is writable.

    Raises:
        StageError: it can't be written.
    """
    folder = work_folder(stage)
    claim = mounted(VolumePath(_output(stage).claim, ""))
    if not claim.is_dir():
        raise StageError(
            Reason.OUTPUT_NOT_WRITABLE,
            f"output.uri {stage.spec.output.uri}: the claim {claim.name} is not mounted. Correct output.uri.",
        )
    with writing(stage):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"sluice")
            probe.flush()
    return folder


@contextmanager
def writing(stage: StageSpec, needs: int | None = None) -> Iterator[None]:
    """Turn a refusal by the output's file system into an error that names the claim and the remedy.

    Args:
        stage: What is done.
        needs: Bytes that are written, if that is known.
    """
    uri = stage.spec.output.uri
    try:
        with _safetensors_as_os_errors():
            yield
    except OSError as error:
        if error.errno in _REFUSED or isinstance(error, FileExistsError | NotADirectoryError):
            raise StageError(
                Reason.OUTPUT_NOT_WRITABLE,
                f"output.uri {uri}: {error.strerror} for uid {os.getuid()} at {error.filename}. "
                "Give that uid write access to the claim (for example with an fsGroup), or use another claim.",
            ) from error
        if error.errno in _FULL:
            free = shutil.disk_usage(mounted(VolumePath(_output(stage).claim, ""))).free
            needed = f", and {needs:,} are needed" if needs else ""
            raise StageError(
                Reason.OUTPUT_NOT_WRITABLE,
                f"output.uri {uri}: {error.strerror} ({free:,} bytes are free{needed}). Make room in the claim, or use "
                "a larger one.",
                ExitCode.INTERNAL,
            ) from error
        raise


@contextmanager
def _safetensors_as_os_errors() -> Iterator[None]:
    """Turn a SafetensorError into the OSError that its text names: "I/O error: ... (os error 28)"."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _output(stage: StageSpec) -> VolumePath:
    path = volume_path(stage.spec.output.uri)
    if path is None:
        raise StageError(Reason.OUTPUT_NOT_WRITABLE, f"output.uri {stage.spec.output.uri} is no pvc:// address")
    return path
