"""The adapters on this pod's own disk. Files are copied from their source first and checked afterwards, so that vLLM
reads the bytes that were checked. Everything here blocks and runs in a thread.
"""

import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Collection
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from sluice_api.artifacts import ADAPTER_FILES, CHAT_TEMPLATE, MANIFEST, AdapterManifest, adapter_digest
from sluice_api.chat_template import TemplateName
from sluice_api.inferenceengine import AdapterTemplates
from sluice_api.meta import adapter_version
from sluice_api.reasons import Reason
from sluice_api.slots import SlotSpec
from sluice_files.chat_templates import builtin
from sluice_server.agent.checks import BaseModel, Candidate, check_adapter, layer_names
from sluice_server.agent.rejected import AdapterRejected
from sluice_server.agent.resources import WantedAdapter
from sluice_server.agent.sources import FETCHED, MAX_BYTES, AdapterFiles, AdapterSources
from sluice_server.agent.tensors import NotSafetensors, adapter_tensors, folder_tensors, not_finite
from sluice_server.agent.trial import fault_of_patterns, fault_of_template
from sluice_server.model import EngineModel, engine_model
from sluice_server.paths import SlotPaths

CONFIG, WEIGHTS = ADAPTER_FILES
_STAGING = ".new-"
_CHUNK = 2**20

_FileVersions = tuple[tuple[int, ...] | None, ...]
"""What `_file_version` returns for each file of an adapter."""


class AdapterCache:
    """The folders of fetched adapters, one for each version."""

    def __init__(self, slot: SlotSpec, paths: SlotPaths) -> None:
        self._slot, self._paths = slot, paths
        self._lora = slot.spec.lora
        self._sources = AdapterSources(slot, paths)
        self._rejected: dict[WantedAdapter, tuple[_FileVersions, AdapterRejected]] = {}

    def versions(self) -> frozenset[str]:
        """The folders that exist. A staging folder is among them if an agent ended while it copied."""
        folders = (entry.name for entry in self._paths.adapters.iterdir() if entry.is_dir())
        return frozenset(name for name in folders if name != FETCHED)

    def path(self, version: str) -> Path:
        """A version's folder, which has the same path in vLLM's container."""
        return self._paths.adapters / version

    def remove(self, version: str) -> None:
        """Delete a version's folder."""
        shutil.rmtree(self.path(version))

    def keep(self, names: Collection[str]) -> None:
        """Delete what was fetched of other adapters than these, and is not in use."""
        self._sources.keep(names)

    def fetch(self, adapter: WantedAdapter) -> str:
        """Copy an adapter's files, check them, and return the version.

        A rejected adapter is rejected again without a copy until one of its files changes.

        Raises:
            AdapterRejected: vLLM can't load the adapter, or would serve it wrongly.
        """
        if adapter.name in (self._slot.engine, *self._slot.spec.served_names):
            raise AdapterRejected(Reason.ADAPTER_INVALID, f"{adapter.name} is the base model's name: use another one.")
        source = self._sources.files(adapter)
        files = tuple(_file_version(source.folder / name) for name in MAX_BYTES)
        files_then, rejection = self._rejected.get(adapter, (None, None))
        if rejection and files == files_then:
            raise rejection
        try:
            version = self._copy_checked(adapter, source)
        except AdapterRejected as rejection:
            self._rejected = {
                **{k: v for k, v in self._rejected.items() if k.name != adapter.name},
                adapter: (files, rejection),
            }
            raise
        self._sources.copied(adapter)
        return version

    def _copy_checked(self, adapter: WantedAdapter, source: AdapterFiles) -> str:
        staging = self.path(f"{_STAGING}{uuid.uuid4().hex}")
        staging.mkdir(parents=True)
        try:
            for name in ADAPTER_FILES:
                _copy(source.within, source.folder / name, staging / name, adapter)
            manifest = _manifest(source, staging, adapter)
            candidate = self._candidate(adapter, staging, manifest)
            check_adapter(candidate, self._base_model)
            # An export of ours says in its manifest what its rows were rendered with. Other tools leave a file.
            template = manifest.chat_template if manifest else _text(source, staging / CHAT_TEMPLATE, adapter)
            _try_patterns(candidate)
            digest = self._put_template(template, staging, candidate)
            version = adapter_version(adapter.name, digest)
            if not self.path(version).exists():
                staging.rename(self.path(version))
            return version
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _put_template(self, text: str, folder: Path, candidate: Candidate) -> str:
        """Put an adapter's chat template beside it if it has another one than the engine. Returns a digest of both."""
        if not text or text == self._model.template:
            (folder / CHAT_TEMPLATE).unlink(missing_ok=True)
            return candidate.digest
        if (
            self._lora
            and self._lora.chat_templates is AdapterTemplates.KNOWN
            and text not in map(builtin, TemplateName)
        ):
            raise AdapterRejected(
                Reason.ADAPTER_INVALID,
                f"{candidate.uri}: it has a chat template of its own, and lora.chatTemplates of {self._slot.engine} is "
                f"Known. Train with {self._slot.engine}'s template or a built-in one, or set it to Any.",
            )
        if fault := fault_of_template(text):
            raise AdapterRejected(
                Reason.ADAPTER_INVALID, f"{candidate.uri}: its chat template {fault}. Correct it, or leave it out."
            )
        (folder / CHAT_TEMPLATE).write_text(text, encoding="utf-8")
        return "sha256:" + hashlib.sha256(f"{candidate.digest} {text}".encode()).hexdigest()

    def _candidate(self, adapter: WantedAdapter, folder: Path, manifest: AdapterManifest | None) -> Candidate:
        try:
            config = json.loads((folder / CONFIG).read_bytes())
            found = adapter_tensors(folder / WEIGHTS)
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
    def _model(self) -> EngineModel:
        return engine_model(self._slot.spec, self._paths)

    @cached_property
    def _base_model(self) -> BaseModel:
        """Names and shapes of tensors are known of safetensors only."""
        folder = self._model.folder
        return BaseModel(self._slot.spec.model.uri, self._model.known_fingerprint(), folder_tensors(folder))


def _try_patterns(candidate: Candidate) -> None:
    patterns = [*(candidate.config.get("rank_pattern") or ()), *(candidate.config.get("alpha_pattern") or ())]
    if fault := fault_of_patterns(patterns, layer_names(candidate)):
        raise AdapterRejected(
            Reason.ADAPTER_INVALID,
            f"{candidate.uri}: rank_pattern or alpha_pattern in {CONFIG} {fault}. Name the layers.",
        )


def _file_version(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is written or replaced; None if there is no file, or it can't be looked at."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _manifest(source: AdapterFiles, staging: Path, adapter: WantedAdapter) -> AdapterManifest | None:
    """The manifest that our export writes; None for an adapter of another tool."""
    text = _text(source, staging / MANIFEST, adapter)
    (staging / MANIFEST).unlink(missing_ok=True)
    try:
        return AdapterManifest.model_validate_json(text)
    except ValidationError:
        return None


def _text(source: AdapterFiles, target: Path, adapter: WantedAdapter) -> str:
    """The content of a file that an adapter need not have, copied to `target`; empty if it has none, or no text."""
    try:
        _copy(source.within, source.folder / target.name, target, adapter)
        return target.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""
    except AdapterRejected as rejection:
        if rejection.reason == Reason.ADAPTER_NOT_FOUND:
            return ""
        raise


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
