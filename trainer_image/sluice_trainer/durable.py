"""Files and folders that are either whole or absent, whatever happens while they are written or kept.

A folder is written under another name, with its manifest last, made durable, and then renamed. Every file is
readable by other users: the engine that serves an adapter runs under another uid than the trainer.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from sluice_api.artifacts import MANIFEST, file_digest
from sluice_api.model import Model
from sluice_trainer import failpoints

M = TypeVar("M", bound=Model)

_UNFINISHED = ".unfinished-"
_CHECKSUM = "sha256"


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `folder` at once and durably when the block ends.

    A block that fails leaves `folder` as it was, and takes no room for what it had written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_name(folder)
    try:
        unfinished.mkdir()
        failpoints.reached("folder-made")
        yield unfinished
        failpoints.reached("folder-written")
        for path in (*unfinished.iterdir(), unfinished):
            path.chmod(0o755 if path.is_dir() else 0o644)
            _sync(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    failpoints.reached("folder-synced")
    aside = unfinished.with_name(f"{unfinished.name}-old")
    if folder.exists():
        folder.rename(aside)
        failpoints.reached("folder-set-aside")
    try:
        unfinished.rename(folder)
    except OSError:
        # Another attempt, which believes that this one is dead, has removed what this one wrote: its own one stays.
        if aside.exists() and not folder.exists():
            aside.rename(folder)
        raise
    failpoints.reached("folder-renamed")
    _sync(folder.parent)
    failpoints.reached("folder-durable")
    shutil.rmtree(aside, ignore_errors=True)


def unfinished_name(path: Path) -> Path:
    """A new name, beside a path, under which it is written."""
    return path.with_name(f"{_UNFINISHED}{path.name}-{uuid.uuid4().hex[:8]}")


def parse_unfinished(name: str) -> tuple[str, str]:
    """The name of what is written under a name of unfinished_name, and eight digits that no other such name has.

    Raises:
        ValueError: it is no such name.
    """
    match = re.fullmatch(rf"{re.escape(_UNFINISHED)}(.+)-([0-9a-f]{{8}})", name)
    if match is None:
        raise ValueError(f"{name} is no name of an unfinished folder")
    return match[1], match[2]


def is_unfinished(name: str, folder: Path) -> bool:
    """Whether new_folder could write `folder` under this name."""
    return re.fullmatch(rf"{re.escape(f'{_UNFINISHED}{folder.name}')}-[0-9a-f]{{8}}", name) is not None


def remove_unfinished(parent: Path, name: str = "") -> None:
    """Remove what an earlier process left half-written in a folder, or only what would have become `name` there."""
    for leftover in parent.glob(f"{_UNFINISHED}{name}-*" if name else f"{_UNFINISHED}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def write_file(path: Path, text: str) -> None:
    """Write a file atomically and durably: after a crash it is whole, or as it was before."""
    unfinished = unfinished_name(path)
    unfinished.write_text(text, encoding="utf-8")
    unfinished.chmod(0o644)
    _sync(unfinished)
    failpoints.reached("file-written")
    unfinished.rename(path)
    failpoints.reached("file-renamed")
    _sync(path.parent)


def digests(folder: Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """sha256 of every file of a folder but its manifest, by name; those that are known are not read again."""
    files = (path for path in sorted(folder.iterdir()) if path.name != MANIFEST)
    return {path.name: (known or {}).get(path.name) or file_digest(path) for path in files}


def sealed(manifest: Model) -> str:
    """The manifest as JSON with its own checksum, by which `read_manifest` notices that a bit of it has changed."""
    fields = json.loads(manifest.to_json())
    return json.dumps(fields | {_CHECKSUM: _checksum(fields)})


def read_manifest(folder: Path, manifest: type[M]) -> M | None:
    """Read the folder's manifest; None if it is missing, damaged or invalid."""
    try:
        return parse_manifest((folder / MANIFEST).read_bytes(), manifest)
    except (FileNotFoundError, NotADirectoryError):
        return None


def parse_manifest(text: bytes, manifest: type[M]) -> M | None:
    """Read a manifest; None if it is damaged or invalid. Older versions wrote no checksum."""
    try:
        fields = json.loads(text)
        if _CHECKSUM in fields and fields.pop(_CHECKSUM) != _checksum(fields):
            return None
        return manifest.model_validate_json(json.dumps(fields))
    except (ValueError, TypeError, AttributeError):
        return None


def _checksum(fields: object) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def damaged_file(folder: Path, files: Mapping[str, str]) -> str | None:
    """The first file that is not there or not as its manifest says; None when the folder is whole."""
    for name, digest in files.items():
        path = folder / name
        if not path.is_file() or file_digest(path) != digest:
            return name
    return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
