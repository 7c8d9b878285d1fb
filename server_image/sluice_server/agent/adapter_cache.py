"""The adapters on this pod's own disk. Files are copied from their claim first and checked afterwards, so that vLLM
reads the bytes that were checked. Everything here blocks and runs in a thread.
"""

import json
import os
import shutil
import stat
import uuid
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from sluice_api.artifacts import ADAPTER_FILES, MANIFEST, AdapterManifest, adapter_digest, model_fingerprint
from sluice_api.meta import adapter_version
from sluice_api.reasons import Reason
from sluice_api.slots import SlotSpec
from sluice_api.sources import VOLUMES, claims_of, volume_path
from sluice_server.agent.checks import BaseModel, Candidate, check_adapter
from sluice_server.agent.rejected import AdapterRejected
from sluice_server.agent.resources import WantedAdapter
from sluice_server.agent.tensors import NotSafetensors, folder_tensors, not_finite, tensors
from sluice_server.paths import SlotPaths

CONFIG, WEIGHTS = ADAPTER_FILES
MAX_BYTES = {CONFIG: 2**20, MANIFEST: 2**20, WEIGHTS: 8 * 2**30}
_STAGING = ".new-"
_CHUNK = 2**20

_FileVersions = tuple[tuple[int, ...] | None, ...]
"""What `_file_version` returns for each file of an adapter."""


class AdapterCache:
    """The folders of fetched adapters, one for each version."""

    def __init__(self, slot: SlotSpec, paths: SlotPaths) -> None:
        self._slot, self._paths = slot, paths
        self._lora = slot.spec.lora
        self._rejected: dict[WantedAdapter, tuple[_FileVersions, AdapterRejected]] = {}

    def versions(self) -> frozenset[str]:
        """The folders that exist. A staging folder is among them if an agent ended while it copied."""
        return frozenset(entry.name for entry in self._paths.adapters.iterdir() if entry.is_dir())

    def path(self, version: str) -> Path:
        """A version's folder, which has the same path in vLLM's container."""
        return self._paths.adapters / version

    def remove(self, version: str) -> None:
        """Delete a version's folder."""
        shutil.rmtree(self.path(version))

    def fetch(self, adapter: WantedAdapter) -> str:
        """Copy an adapter's files, check them, and return the version.

        A rejected adapter is rejected again without a copy until one of its files changes.

        Raises:
            AdapterRejected: vLLM can't load the adapter, or would serve it wrongly.
        """
        if adapter.name == self._slot.engine:
            raise AdapterRejected(Reason.ADAPTER_INVALID, f"{adapter.name} is the base model's name: use another one.")
        claim, source = self._source(adapter)
        files = tuple(_file_version(source / name) for name in (*ADAPTER_FILES, MANIFEST))
        files_then, rejection = self._rejected.get(adapter, (None, None))
        if rejection and files == files_then:
            raise rejection
        try:
            return self._copy_checked(adapter, claim, source)
        except AdapterRejected as rejection:
            self._rejected = {
                **{k: v for k, v in self._rejected.items() if k.name != adapter.name},
                adapter: (files, rejection),
            }
            raise

    def _copy_checked(self, adapter: WantedAdapter, claim: Path, source: Path) -> str:
        staging = self.path(f"{_STAGING}{uuid.uuid4().hex}")
        staging.mkdir(parents=True)
        try:
            for name in ADAPTER_FILES:
                _copy(claim, source / name, staging / name, adapter)
            candidate = self._candidate(adapter, staging, _manifest(claim, source, staging, adapter))
            check_adapter(candidate, self._base_model)
            version = adapter_version(adapter.name, candidate.digest)
            if not self.path(version).exists():
                staging.rename(self.path(version))
            return version
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _source(self, adapter: WantedAdapter) -> tuple[Path, Path]:
        """The folder where the adapter's claim is mounted, and the adapter's folder in it."""
        try:
            address = volume_path(adapter.uri)
        except ValueError as error:
            raise AdapterRejected(Reason.ADAPTER_INVALID, str(error)) from error
        if address is None:
            raise AdapterRejected(Reason.ADAPTER_INVALID, f"{adapter.uri}: write source.uri as pvc://claim/path.")
        mounted = {*(self._lora.volume_claims if self._lora else ()), *claims_of(self._slot.spec.model.uri)}
        if address.claim not in mounted:
            raise AdapterRejected(
                Reason.ADAPTER_SOURCE_NOT_MOUNTED,
                f"{adapter.uri}: {self._slot.engine} mounts {', '.join(sorted(mounted)) or 'no claim'}. "
                f"Add {address.claim} to its lora.volumeClaims.",
            )
        return self._paths.at(VOLUMES / address.claim), self._paths.at(address.mounted)

    def _candidate(self, adapter: WantedAdapter, folder: Path, manifest: AdapterManifest | None) -> Candidate:
        try:
            config = json.loads((folder / CONFIG).read_bytes())
            found = tensors(folder / WEIGHTS)
        except NotSafetensors as error:
            raise AdapterRejected(Reason.ADAPTER_INVALID, f"{adapter.uri}: {error}.") from error
        except (ValueError, RecursionError) as error:
            raise AdapterRejected(Reason.ADAPTER_INVALID, f"{adapter.uri}: {CONFIG} is not JSON.") from error
        if not isinstance(config, dict):
            raise AdapterRejected(Reason.ADAPTER_INVALID, f"{adapter.uri}: {CONFIG} is not a JSON object.")
        return Candidate(
            uri=adapter.uri,
            config=config,
            tensors=found,
            not_finite=not_finite(folder / WEIGHTS, found),
            digest=adapter_digest(folder),
            manifest=manifest,
            wanted_digest=adapter.digest,
            max_rank=self._lora.max_rank if self._lora else 0,
        )

    @cached_property
    def _base_model(self) -> BaseModel:
        uri = self._slot.spec.model.uri
        address = volume_path(uri)
        if address is None:
            return BaseModel(uri)
        folder = self._paths.at(address.mounted)
        return BaseModel(uri, model_fingerprint(folder), folder_tensors(folder))


def _file_version(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is written or replaced; None if there is no file, or it can't be looked at."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _manifest(claim: Path, source: Path, staging: Path, adapter: WantedAdapter) -> AdapterManifest | None:
    """The manifest that our export writes; None for an adapter of another tool."""
    copied = staging / MANIFEST
    try:
        _copy(claim, source / MANIFEST, copied, adapter)
    except AdapterRejected as rejection:
        if rejection.reason == Reason.ADAPTER_NOT_FOUND:
            return None
        raise
    try:
        return AdapterManifest.model_validate_json(copied.read_bytes())
    except ValidationError:
        return None
    finally:
        copied.unlink()


def _copy(claim: Path, source: Path, target: Path, adapter: WantedAdapter) -> None:
    """Copy one regular file of the claim. A link out of the claim is rejected, even if it is made during the copy."""
    try:
        # O_NONBLOCK: to open a FIFO would be to wait for its writer.
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AdapterRejected(
            Reason.ADAPTER_NOT_FOUND, f"{adapter.uri} has no {source.name}. It is looked for again every few seconds."
        ) from error
    except OSError as error:
        raise AdapterRejected(
            Reason.ADAPTER_NOT_FOUND,
            f"{adapter.uri}: {source.name} can't be read ({error.strerror}). Let uid {os.getuid()} read it.",
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        # The path of the open file: the name may lead elsewhere by now.
        opened = Path(f"/proc/self/fd/{descriptor}").readlink()
        if not opened.is_relative_to(claim.resolve()):
            raise AdapterRejected(Reason.ADAPTER_INVALID, f"{adapter.uri}: {source.name} is a link out of its claim.")
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise AdapterRejected(Reason.ADAPTER_INVALID, f"{adapter.uri}: {source.name} is no file.")
        limit = MAX_BYTES[source.name]
        if status.st_size > limit:
            raise AdapterRejected(
                Reason.ADAPTER_INVALID, f"{adapter.uri}: {source.name} has {status.st_size} bytes, more than {limit}."
            )
        with target.open("wb") as copy:
            left = limit
            while left and (chunk := file.read(min(_CHUNK, left))):
                copy.write(chunk)
                left -= len(chunk)
    target.chmod(0o444)
