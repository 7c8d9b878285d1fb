"""Models and adapters in object stores and on the hub: which files they are, and how they come onto a disk."""

import fcntl
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Protocol

from sluice_api.artifacts import ADAPTER_FILES, CHAT_TEMPLATE, MANIFEST, ModelFiles, model_fingerprint, weight_files
from sluice_api.sources import is_object
from sluice_files.credentials import NOTHING, Credentials
from sluice_files.errors import Failure, FileError
from sluice_files.hub import HubRepository
from sluice_files.objects import ObjectFile, ObjectFolder
from sluice_files.room import require_room

_SMALL = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.spm")
"""Configuration and tokenizer. What is deeper in the folder belongs to other formats of the model, but these:"""
_TEMPLATES = "additional_chat_templates/*.jinja"
_BESIDE_ADAPTER = (MANIFEST, CHAT_TEMPLATE)
_MAX_SMALL_BYTES = 64 * 2**20
_MAX_FILES = 10_000
"""Below an address in an object store. It may be a whole bucket's, and the engine's agent has 512 MiB."""


@dataclass(frozen=True)
class FetchedModel:
    """A model, or an adapter, on this machine's disk."""

    uri: str
    folder: Path
    revision: str
    """The hub's commit; empty for an object store."""
    weights: Sequence[str] = ()
    """artifacts.weight_files of the model, whether or not they are here."""
    left: ModelFiles | None = None
    """The folder far away, if the weights were left there: parts of them can be read."""

    @cached_property
    def fingerprint(self) -> str:
        """artifacts.model_fingerprint, whether or not the weights are here.

        Raises:
            FileError: Invalid: config.json can't be read; and all others.
        """
        try:
            return model_fingerprint(self.left or self.folder)
        except (ValueError, RecursionError, AttributeError) as error:
            why = str(error) if isinstance(error, ValueError) else "it is no JSON object"
            raise FileError(Failure.INVALID, f"{self.uri}: config.json can't be read: {why}. Restore it.") from error


def model_files(names: Iterable[str], *, weights: bool = True) -> list[str]:
    """Which of the files below a folder are a model's."""
    names = list(names)
    small = [name for name in names if any(fnmatch(name, sign) for sign in _SMALL) and "/" not in name]
    templates = [name for name in names if fnmatch(name, _TEMPLATES)]
    heavy = weight_files(name for name in names if "/" not in name) if weights else []
    return sorted({*small, *templates, *heavy})


def fetch_model(
    uri: str, cache: Path, credentials: Credentials = NOTHING, revision: str = "", *, weights: bool = True
) -> FetchedModel:
    """A model's configuration, tokenizer and weights in a folder below `cache`. Other processes may ask for it too.

    Args:
        uri: hf://org/name@revision, or s3://bucket/path (gs:// and az:// too).
        cache: a folder on this machine's disk, where what was fetched before is found again.
        credentials: read_credentials of that address.
        revision: a commit of the hub that an earlier stage used; it replaces the address's own.
        weights: False: everything but the weights, whose fingerprint is then of samples that are read from afar.

    Raises:
        FileError: TooLarge: the disk below `cache` has no room for it; and all others.
    """
    source = _source(uri, credentials, revision)
    _require(source, ["config.json"])
    chosen = model_files(source.files, weights=weights)
    heavy = weight_files(name for name in source.files if "/" not in name)
    if not heavy:
        top = sorted(name for name in source.files if "/" not in name)
        raise FileError(
            Failure.NOT_FOUND,
            f"{uri} has no weights: neither *.safetensors nor pytorch_model*.bin. It has: {', '.join(top[:12])}. Save "
            "them (save_pretrained does), or correct the address.",
        )
    folder = source.fetch(chosen, _apart(cache, credentials))
    left = None if weights else _Remote(source)
    return FetchedModel(uri, folder, source.revision, heavy, left)


def fetch_adapter(
    uri: str, cache: Path, credentials: Credentials = NOTHING, *, most: Mapping[str, int] | None = None
) -> FetchedModel:
    """The adapter at an address, in a folder below `cache`: its configuration, weights and manifest.

    Args:
        uri, cache, credentials: as fetch_model takes them.
        most: bytes that these files may have.

    Raises:
        FileError: Invalid, one has more; it is not there, or can't be had.
    """
    source = _source(uri, credentials, "")
    _require(source, ADAPTER_FILES)
    chosen = [*ADAPTER_FILES, *(name for name in _BESIDE_ADAPTER if name in source.files)]
    for name in chosen:
        size = source.files[name]
        if size > (limit := (most or {}).get(name, size)):
            raise FileError(
                Failure.INVALID,
                f"{uri}: {name} has {size:,} bytes, and at most {limit:,} are fetched. Correct the address.",
            )
    return FetchedModel(uri, source.fetch(chosen, _apart(cache, credentials)), source.revision)


_ENDPOINTS = ("HF_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AZURE_STORAGE_ENDPOINT")


def _apart(cache: Path, credentials: Credentials) -> Path:
    """The cache of one server: another one may give other bytes under the same names, and those of a cache that several
    engines share are not fetched again."""
    endpoint = credentials.first(*_ENDPOINTS)
    return cache / hashlib.sha256(endpoint.encode()).hexdigest()[:16] if endpoint else cache


class _Source(Protocol):
    """A folder far away."""

    @property
    def uri(self) -> str: ...
    @property
    def revision(self) -> str: ...
    @property
    def files(self) -> Mapping[str, int]:
        """Every file below, with its bytes."""

    def fetch(self, names: Sequence[str], cache: Path) -> Path: ...
    def read(self, name: str) -> bytes: ...
    def samples(self, name: str, starts: Sequence[int], length: int) -> Iterable[bytes]: ...


def _source(uri: str, credentials: Credentials, revision: str) -> _Source:
    return _Objects(uri, credentials) if is_object(uri) else _Hub(uri, credentials, revision)


def _require(source: _Source, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in source.files]
    if not missing:
        return
    if not source.files:
        raise FileError(Failure.NOT_FOUND, f"{source.uri}: there is nothing below this address. Correct it.")
    there = ", ".join(sorted(source.files)[:12]) + (", ..." if len(source.files) > 12 else "")
    raise FileError(
        Failure.NOT_FOUND, f"{source.uri} has no {' and no '.join(missing)}. It has: {there}. Correct the address."
    )


class _Hub:
    """A repository, or a folder of it."""

    def __init__(self, uri: str, credentials: Credentials, revision: str) -> None:
        self.uri = uri
        self._repository = HubRepository(uri, credentials, dataset=False, revision=revision)
        self._below = f"{self._repository.path.path}/".lstrip("/")

    @property
    def revision(self) -> str:
        return self._repository.commit

    @cached_property
    def files(self) -> Mapping[str, int]:
        below = self._below
        all_files = self._repository.files.items()
        return {name.removeprefix(below): size for name, size in all_files if name.startswith(below)}

    def fetch(self, names: Sequence[str], cache: Path) -> Path:
        return self._repository.fetch([self._below + name for name in names], cache) / self._below

    def read(self, name: str) -> bytes:
        return self._repository.read(self._below + name, _MAX_SMALL_BYTES)

    def samples(self, name: str, starts: Sequence[int], length: int) -> Iterator[bytes]:
        return self._repository.ranges(self._below + name, starts, length)


class _Objects:
    """A folder of an object store."""

    revision = ""

    def __init__(self, uri: str, credentials: Credentials) -> None:
        self.uri = uri
        self._folder = ObjectFolder(uri, credentials)

    @cached_property
    def _names(self) -> Mapping[str, ObjectFile]:
        return {file.name: file for file in self._folder.names(most=_MAX_FILES)}

    @property
    def files(self) -> Mapping[str, int]:
        return {name: file.size for name, file in self._names.items()}

    def fetch(self, names: Sequence[str], cache: Path) -> Path:
        """Into a folder whose name says which bytes: another version of a file is in another one."""
        wanted = [self._names[name] for name in names]
        version = hashlib.sha256(repr((self.uri, wanted)).encode()).hexdigest()[:32]
        folder = cache / "objects" / version
        with _alone(folder):
            missing = [file for file in wanted if not (folder / file.name).exists()]
            require_room(self.uri, sum(file.size for file in missing), folder.parent)
            for file in missing:  # each is whole or absent
                self._folder.fetch(file.name, folder / file.name)
        return folder

    def read(self, name: str) -> bytes:
        return self._folder.read(name)

    def samples(self, name: str, starts: Sequence[int], length: int) -> list[bytes]:
        size = self._names[name].size
        return self._folder.ranges(name, starts, [min(length, size - start) for start in starts]) if size else []


@dataclass(frozen=True)
class _Remote(ModelFiles):
    """A model whose weights stay where they are."""

    source: _Source

    def sizes(self) -> Mapping[str, int]:
        return {name: size for name, size in self.source.files.items() if "/" not in name}

    def read(self, name: str) -> bytes:
        return self.source.read(name)

    def samples(self, name: str, starts: Sequence[int], length: int) -> Iterable[bytes]:
        return self.source.samples(name, starts, length)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else fills the folder meanwhile: the processes of a pod's GPUs all want the same model."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
