"""The job's own folder, <output.uri>/<job>-<uid8>/: prepared/, checkpoints/ and export/, each whole or absent.

It is in a claim, where nothing is copied (WorkFolder, here), or in an object store (work_in_store.WorkInStore), of
which this pod has on its own disk what it needs. Stages name what they read and write by its path on this machine.
"""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from sluice_api.artifacts import MANIFEST
from sluice_api.model import Model
from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode
from sluice_files.room import FULL
from sluice_trainer import durable
from sluice_trainer.errors import StageError

M = TypeVar("M", bound=Model)

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


class WorkFolder:
    """A job's folder on a file system that all its pods share."""

    is_copied = False
    """Whether pods work on copies of their own."""

    def __init__(self, folder: Path, uri: str = "", claim: Path | None = None) -> None:
        """Touches nothing.

        Args:
            folder: Where it is on this machine.
            uri: Its address.
            claim: Where the root of its volume is; its parent, if that is not said.
        """
        self.folder = folder
        self.uri = uri
        self._claim = claim or folder.parent

    def check_writable(self) -> None:
        """Make the folder, and find out whether files can be written there.

        Raises:
            StageError: they can't.
        """
        if not self._claim.is_dir():
            raise StageError(
                Reason.OUTPUT_NOT_WRITABLE,
                f"output.uri {self.uri}: the claim {self._claim.name} is not mounted. Correct output.uri.",
            )
        with self.writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder) as probe:
                probe.write(b"sluice")
                probe.flush()

    @contextmanager
    def writing(self, needs: int | None = None) -> Iterator[None]:
        """Turn a refusal by the output into an error that names the field and the remedy.

        Args:
            needs: Bytes that are written, if that is known.
        """
        try:
            with _safetensors_as_os_errors():
                yield
        except OSError as error:
            if error.errno in _REFUSED or isinstance(error, FileExistsError | NotADirectoryError):
                raise StageError(
                    Reason.OUTPUT_NOT_WRITABLE,
                    f"output.uri {self.uri}: {error.strerror} for uid {os.getuid()} at {error.filename}. "
                    "Give that uid write access to the claim (for example with an fsGroup), or use another claim.",
                ) from error
            if error.errno in FULL:
                raise self._no_room(os.strerror(error.errno), needs) from error
            raise

    def new_folder(self, path: Path) -> AbstractContextManager[Path]:
        """A folder to write into, which becomes `path` at once and durably when the block ends: durable.new_folder."""
        return durable.new_folder(path)

    def share(self, unfinished: Path) -> None:
        """Write files into a folder that another process has begun by `new_folder`: here it is there already."""

    def add(self, file: Path) -> None:
        """Make a file part of such a folder: here the other process sees it as it is."""

    def write_manifest(self, path: Path, text: str) -> None:
        """Write the manifest of a folder that has no other files of its own, at once and durably."""
        durable.write_file(path / MANIFEST, text)

    def fetch(self, path: Path) -> Path:
        """Bring a folder onto this machine's disk, as its manifest says it is. Returns `path`, absent if there is none.

        Here it is there already, and nobody has looked whether it is whole.
        """
        return path

    def forget(self, path: Path) -> None:
        """Make room where `fetch` has taken some."""

    def read_manifest(self, path: Path, kind: type[M]) -> M | None:
        """Read the manifest of a folder, without its files; None if it is missing, damaged or invalid."""
        return durable.read_manifest(path, kind)

    def folders(self, parent: Path) -> list[str]:
        """Names of the folders in a folder, whole or not."""
        return [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []

    def remove(self, path: Path) -> None:
        """Remove a folder, if it is there."""
        shutil.rmtree(path, ignore_errors=True)

    def remove_unfinished(self, path: Path) -> None:
        """Remove what earlier processes have left half-written of a folder, and in it."""
        durable.remove_unfinished(path.parent, path.name)
        durable.remove_unfinished(path)

    def address(self, path: Path) -> str:
        """Where others find a folder that is whole."""
        return f"{self.uri}/{path.relative_to(self.folder)}"

    def end_soon(self, seconds: float, *, give_up: bool) -> None:
        """Say that the process ends, at the latest in so many seconds.

        Args:
            give_up: Folders that are not whole yet are not needed any more.
        """

    def _no_room(self, problem: str, needs: int | None) -> StageError:
        needed = f", and {needs:,} are needed" if needs else ""
        return StageError(
            Reason.OUTPUT_NOT_WRITABLE,
            f"output.uri {self.uri}: {problem} ({shutil.disk_usage(self._claim).free:,} bytes are free{needed}). Make "
            "room in the claim, or use a larger one.",
            ExitCode.INTERNAL,
        )


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
