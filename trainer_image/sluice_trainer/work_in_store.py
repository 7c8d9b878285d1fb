"""A job's folder in an object store. A pod has on its own disk what it reads, and what it writes until that is there.

A store can replace one file at a time and nothing else, and a pod that is believed to be gone may still write: one on a
node that has lost its network does. Therefore:

- **Nothing is written twice.** What becomes <work>/prepared is written to <work>/prepared/attempt-<n>-<id>/, where n is
  the stage's attempt, and the id another one each time. Files come first, and the manifest, which names them all, last.
  A folder without a manifest, or without one of its files, is not there. So nobody ever sees a half of anything, and
  an old pod can't put its bytes in the place of a new one's.
- **Only what is one's own, or older, is removed**: what an earlier attempt has written, or this very process. So an old
  pod can't remove what a newer one has. It may lose its own checkpoints to the newer one, which has read what it goes
  on from, and removes them only when it has a whole one itself. A manifest is removed before its files.
- **Of several folders of one name the one of the newest attempt counts**, for all readers. An old pod that completes
  the training late is not heard.

No request depends on what a store has just now (If-None-Match): not every store knows that, nor for large files.
Resuming from a checkpoint that an old pod has written after all is no damage: it is a state of the same training.
"""

import fcntl
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from operator import methodcaller
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

from sluice_api.artifacts import MANIFEST, file_digest
from sluice_api.model import Model
from sluice_api.pods import disk_room
from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode, StageSpec
from sluice_files.credentials import read_credentials
from sluice_files.errors import Failure, FileError
from sluice_files.objects import ObjectFolder
from sluice_trainer import durable, failpoints, logs
from sluice_trainer.errors import StageError, fetching
from sluice_trainer.store_requests import StoreRequests
from sluice_trainer.work_folder import WorkFolder

M = TypeVar("M", bound=Model)
T = TypeVar("T")

WORK_ENV = "SLUICE_WORK"
"""Moves the folder with this pod's copies, for runs outside a pod."""
_NOT_WRITTEN = {
    Failure.REFUSED: Reason.ACCESS_REFUSED,
    Failure.UNREACHABLE: Reason.OUTPUT_UNREACHABLE,
    Failure.NOT_FOUND: Reason.OUTPUT_NOT_WRITABLE,
    Failure.TOO_LARGE: Reason.OUTPUT_NOT_WRITABLE,
    Failure.INVALID: Reason.OUTPUT_NOT_WRITABLE,
}
_COPY = re.compile(r"attempt-(\d+)-([0-9a-f]{8})")
_ID_LENGTH = 8


class _Copy(NamedTuple):
    """What one process has written in place of a folder. They are ordered by attempt."""

    attempt: int
    id: str
    files: frozenset[str]

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"attempt-{self.attempt}-{self.id}"

    @property
    def is_whole(self) -> bool:
        """Whether its writer came to the end, as far as a listing shows."""
        return MANIFEST in self.files


class WorkInStore(WorkFolder):
    """A job's folder in an object store."""

    is_copied = True

    def __init__(self, uri: str, stage: StageSpec, attempt: int, field: str = "output.uri") -> None:
        """Asks nobody yet.

        Args:
            uri: Its address.
            stage: Whose output's credentials open it.
            attempt: In whose name is written.
            field: That has the address.

        Raises:
            StageError: the credentials are missing or incomplete.
        """
        root = Path(os.environ.get(WORK_ENV) or Path(tempfile.gettempdir()) / "work")
        super().__init__(root / uri.partition("://")[2], uri)
        self._field = field
        self._attempt = attempt
        self._secret = stage.spec.output.credentials
        with self.writing():
            self._credentials = read_credentials(self._secret, uri)
            self._objects = ObjectFolder(uri, self._credentials)
        self._requests = StoreRequests(uri)
        self._written: set[str] = set()
        """Ids of the copies that this process has begun."""
        self._wrong: set[str] = set()
        """Ids of copies whose bytes are not as their manifest says."""

    def check_writable(self) -> None:
        """Write a small file and remove it. Any later stage finds the store as this one does."""
        probe = f"probe-{uuid.uuid4().hex[:8]}"
        with self.writing():
            self._objects.names("prepared")
            self._objects.write(probe, b"sluice")
            self._objects.read(probe)
            self._objects.delete([probe])

    @contextmanager
    def writing(self, needs: int | None = None) -> Iterator[None]:
        """Turn a refusal by the store, or a lack of room here, into an error that names the field and the remedy."""
        if needs is not None and needs > (room := disk_room(tempfile.gettempdir())):
            raise self._no_room(f"this pod's disk has room for {room:,} bytes", needs)
        try:
            with super().writing(needs):
                yield
        except FileError as error:
            again = error.failure in (Failure.UNREACHABLE, Failure.TOO_LARGE)
            code = ExitCode.INTERNAL if again else ExitCode.BAD_INPUT
            message = error.in_field(self._field, "output.credentials")
            raise StageError(_NOT_WRITTEN[error.failure], message, code) from None

    @contextmanager
    def new_folder(self, path: Path) -> Iterator[Path]:
        """A folder to write into, which is `path` in the store when the block ends, and takes no more room here."""
        generation = self._requests.generation
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = durable.unfinished_name(path)
        try:
            unfinished.mkdir()
            failpoints.reached("folder-made")
            yield unfinished
            failpoints.reached("folder-written")
            self._upload(unfinished, generation)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def share(self, unfinished: Path) -> None:
        """Make the folder on this pod's disk too: the process that has begun it may be in another pod."""
        unfinished.mkdir(parents=True, exist_ok=True)

    def add(self, file: Path) -> None:
        """Upload a file to where the other process's files go, and remove it here."""
        name = f"{self._copy_of(file.parent)}/{file.name}"
        self._ask(lambda objects: objects.put(file, name), self._requests.generation)
        file.unlink()

    def write_manifest(self, path: Path, text: str) -> None:
        """Write the manifest of a folder that has no other files of its own."""
        target = self._begun(durable.unfinished_name(path))
        failpoints.reached("file-written")
        self._send_manifest(target, text.encode(), self._requests.generation)
        failpoints.reached("file-renamed")

    def fetch(self, path: Path) -> Path:
        """Download the newest whole copy of a folder. One whose bytes are wrong is passed over, with a log line."""
        with self._reading(), self._one_at_a_time():
            while (found := self._newest(self._name(path))) is not None:
                copy, text = found
                if path.is_dir() and (path / MANIFEST).read_bytes() == text:
                    return path
                try:
                    wrong = self._download(path, copy, text)
                except FileError as error:
                    if error.failure is not Failure.NOT_FOUND:
                        raise
                    wrong = error.message  # removed since it was listed
                if wrong is None:
                    return path
                self._wrong.add(copy.id)
                logs.warning("a copy in the store is damaged", folder=f"{self._name(path)}/{copy.name}", file=wrong)
        shutil.rmtree(path, ignore_errors=True)
        return path

    def forget(self, path: Path) -> None:
        """Remove what `fetch` has brought."""
        shutil.rmtree(path, ignore_errors=True)

    def read_manifest(self, path: Path, kind: type[M]) -> M | None:
        """Read the manifest of the newest whole copy of a folder."""
        with self._reading():
            found = self._newest(self._name(path))
        return durable.parse_manifest(found[1], kind) if found else None

    def folders(self, parent: Path) -> list[str]:
        """Names of the folders in a folder that came to their end."""
        with self._reading():
            found = self._copies(self._name(parent))
        return sorted({_last_name(folder) for folder, copy in found if folder != self._name(parent) and copy.is_whole})

    def remove(self, path: Path) -> None:
        """Remove the copies of a folder that this process or an earlier attempt has written."""
        self._remove(self._name(path), lambda _: True)

    def remove_unfinished(self, path: Path) -> None:
        """Remove what earlier attempts, or this process, have left half-written of a folder and in it, also here."""
        super().remove_unfinished(path)
        self._remove(self._name(path), lambda copy: not copy.is_whole)

    def address(self, path: Path) -> str:
        """Where the newest whole copy is: its bytes never change.

        Raises:
            StageError: there is none.
        """
        with self._reading():
            found = self._newest(self._name(path))
        if found is None:
            raise StageError(
                Reason.OUTPUT_NOT_WRITABLE,
                f"output.uri {self.uri}: {self._name(path)} was there, and is gone. Let nothing else remove files.",
                ExitCode.INTERNAL,
            )
        return f"{self.uri}/{self._name(path)}/{found[0].name}"

    def end_soon(self, seconds: float, *, give_up: bool) -> None:
        """Say that the process ends, at the latest in so many seconds."""
        self._requests.end_soon(seconds, give_up=give_up)

    def _no_room(self, problem: str, needs: int | None) -> StageError:
        needed = f", and {needs:,} are needed" if needs else ""
        return StageError(
            Reason.OUTPUT_NOT_WRITABLE,
            f"output.uri {self.uri}: {problem}{needed}: a file is written to this pod's disk before it is sent. Raise "
            "resources.ephemeralStorage, or use a pvc:// address.",
            ExitCode.INTERNAL,
        )

    def _ask(self, request: Callable[[ObjectFolder], T], generation: int) -> T:
        """Ask the store, as StoreRequests.make does, and anew if the Secret has changed: a token may last an hour."""

        def ask() -> T:
            try:
                return request(self._objects)
            except FileError as error:
                if error.failure is not Failure.REFUSED:
                    raise
                now = read_credentials(self._secret, self.uri)
                if now.values == self._credentials.values:
                    raise
                self._credentials, self._objects = now, ObjectFolder(self.uri, now)
                return request(self._objects)

        return self._requests.make(ask, generation)

    def _upload(self, unfinished: Path, generation: int) -> None:
        """Upload all files of a folder that is written, the manifest last."""
        target = self._begun(unfinished)
        files = (path for path in sorted(unfinished.rglob("*")) if path.is_file() and path != unfinished / MANIFEST)
        for file in files:
            name = f"{target}/{file.relative_to(unfinished).as_posix()}"
            self._ask(methodcaller("put", file, name), generation)
            failpoints.reached("file-uploaded")
        failpoints.reached("folder-synced")
        self._send_manifest(target, (unfinished / MANIFEST).read_bytes(), generation)
        failpoints.reached("folder-renamed")
        failpoints.reached("folder-durable")

    def _begun(self, unfinished: Path) -> str:
        """Note that this process writes a copy. Returns its place in the store."""
        target = self._copy_of(unfinished)
        self._written.add(target[-_ID_LENGTH:])
        return target

    def _send_manifest(self, target: str, text: bytes, generation: int) -> None:
        """Make a copy count."""
        self._ask(lambda objects: objects.write(f"{target}/{MANIFEST}", text), generation)

    def _download(self, path: Path, copy: _Copy, text: bytes) -> str | None:
        """Download a copy. Returns the name of a file whose bytes are not as the manifest says, or None."""
        unfinished = durable.unfinished_name(path)
        generation = self._requests.generation
        try:
            unfinished.mkdir(parents=True)
            for name, digest in _files_of(text).items():
                source, target = f"{self._name(path)}/{copy.name}/{name}", unfinished / name
                self._ask(methodcaller("fetch", source, target), generation)
                if file_digest(target) != digest:
                    return name
            (unfinished / MANIFEST).write_bytes(text)
            shutil.rmtree(path, ignore_errors=True)
            unfinished.rename(path)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return None

    def _newest(self, folder: str) -> tuple[_Copy, bytes] | None:
        """The newest copy of a folder that has a manifest and all its files, and the manifest."""
        generation = self._requests.generation
        copies = [copy for name, copy in self._copies(folder) if name == folder and copy.is_whole]
        for copy in sorted(copies, reverse=True):
            if copy.id in self._wrong:
                continue
            try:
                manifest = f"{folder}/{copy.name}/{MANIFEST}"
                text: bytes = self._ask(methodcaller("read", manifest), generation)
            except FileError as error:
                if error.failure is not Failure.NOT_FOUND:
                    raise
                continue  # removed since it was listed
            if copy.files.issuperset(_files_of(text)):
                return copy, text
        return None

    def _copies(self, folder: str) -> list[tuple[str, _Copy]]:
        """All copies of a folder and of the folders in it, whole or not, with the names of these."""
        files: dict[tuple[str, str], set[str]] = {}
        generation = self._requests.generation
        for file in self._ask(lambda objects: objects.names(folder), generation):
            parts = file.name.split("/")
            if at := next((at for at, part in enumerate(parts[:-1]) if _COPY.fullmatch(part)), 0):
                files.setdefault(("/".join(parts[:at]), parts[at]), set()).add("/".join(parts[at + 1 :]))
        found = []
        for (name, copy), names in files.items():
            if match := _COPY.fullmatch(copy):
                found.append((name, _Copy(int(match[1]), match[2], frozenset(names))))
        return found

    def _remove(self, folder: str, which: Callable[[_Copy], bool]) -> None:
        """Remove copies of a folder, and of the folders in it, that are one's own or older. What can't be removed now
        is so the next time."""
        try:
            for name, copy in self._copies(folder):
                if which(copy) and (copy.attempt < self._attempt or copy.id in self._written):
                    files = sorted(copy.files, key=lambda file: file != MANIFEST)
                    self._objects.delete([f"{name}/{copy.name}/{file}" for file in files])
        except FileError as error:
            logs.warning("not removed from the store", folder=folder, why=error.message)

    def _name(self, path: Path) -> str:
        """The name in the store of a folder here."""
        return path.relative_to(self.folder).as_posix()

    def _copy_of(self, unfinished: Path) -> str:
        """Where in the store a folder goes that is written under the name of durable.unfinished_name."""
        name, copy_id = durable.parse_unfinished(unfinished.name)
        return f"{self._name(unfinished.with_name(name))}/attempt-{self._attempt}-{copy_id}"

    def _reading(self) -> AbstractContextManager[None]:
        """Turn a refusal by the store into an error that names the field and the remedy."""
        return fetching(self._field, "output.credentials", Reason.DOWNLOAD_FAILED)

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Let the processes of one pod, which share its disk, download one after the other."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _files_of(manifest: bytes) -> dict[str, str]:
    """The files that a manifest names, with their sha256; none that would lie outside its folder.

    Anybody who may write to the bucket may have written it.
    """
    try:
        fields = json.loads(manifest)
    except ValueError:
        return {_NO_MANIFEST: ""}
    files = fields.get("files", {}) if isinstance(fields, dict) else {}
    names = files if isinstance(files, dict) else {}
    if not all(isinstance(digest, str) and _is_inside(name) for name, digest in names.items()):
        return {_NO_MANIFEST: ""}
    return dict(names)


_NO_MANIFEST = "/"
"""A file that no folder has: a manifest that can't be read names it, and so no copy of it is whole."""


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and name != MANIFEST


def _last_name(folder: str) -> str:
    return folder.rpartition("/")[2]
