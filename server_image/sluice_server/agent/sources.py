"""Where an adapter's files are on this machine: in a mounted claim, or fetched from an object store or the hub."""

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from sluice_api.artifacts import ADAPTER_FILES, CHAT_TEMPLATE, MANIFEST
from sluice_api.reasons import Reason
from sluice_api.slots import SlotSpec
from sluice_api.sources import VOLUMES, claims_of, volume_path
from sluice_files.errors import Failure, FileError
from sluice_server.agent.rejected import AdapterRejected
from sluice_server.agent.resources import WantedAdapter
from sluice_server.paths import SlotPaths

FETCHED = ".fetched"
"""In the adapters' folder, by the adapter's name: what was fetched, where the engine has no model.cacheClaim."""
MAX_BYTES = {ADAPTER_FILES[0]: 2**20, ADAPTER_FILES[1]: 8 * 2**30, MANIFEST: 2**20, CHAT_TEMPLATE: 2**18}
"""Of an adapter's files."""
_REASONS = {
    Failure.NOT_FOUND: Reason.ADAPTER_NOT_FOUND,
    Failure.INVALID: Reason.ADAPTER_INVALID,
    Failure.REFUSED: Reason.ACCESS_REFUSED,
}


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter's folder, and the folder that no link in it may lead out of."""

    folder: Path
    within: Path


class AdapterSources:
    """Finds the files of adapters. All calls block."""

    def __init__(self, slot: SlotSpec, paths: SlotPaths) -> None:
        self._slot, self._paths = slot, paths
        self._lora = slot.spec.lora
        self._own = paths.adapters / FETCHED

    def files(self, adapter: WantedAdapter) -> AdapterFiles:
        """The files of an adapter, fetched if need be; what is here already, and is still the same, is not again.

        Raises:
            AdapterRejected: its claim is not mounted, or it can't be fetched.
        """
        try:
            address = volume_path(adapter.uri)
        except ValueError as error:
            raise AdapterRejected(Reason.ADAPTER_INVALID, str(error)) from error
        if address is None:
            return self._fetched(adapter)
        mounted = {*(self._lora.volume_claims if self._lora else ()), *claims_of(self._slot.spec.model.uri)}
        if address.claim not in mounted:
            raise AdapterRejected(
                Reason.ADAPTER_SOURCE_NOT_MOUNTED,
                f"{adapter.uri}: {self._slot.engine} mounts {', '.join(sorted(mounted)) or 'no claim'}. "
                f"Add {address.claim} to its lora.volumeClaims.",
            )
        return AdapterFiles(self._paths.at(address.mounted), self._paths.at(VOLUMES / address.claim))

    def copied(self, adapter: WantedAdapter) -> None:
        """Note that an adapter's bytes are in their place: what was fetched of them to this pod's disk can go."""
        shutil.rmtree(self._own / adapter.name, ignore_errors=True)

    def keep(self, names: Collection[str]) -> None:
        """Delete what was fetched to this pod's disk of adapters that are no more."""
        for folder in self._own.iterdir() if self._own.is_dir() else ():
            if folder.name not in names:
                shutil.rmtree(folder, ignore_errors=True)

    def _fetched(self, adapter: WantedAdapter) -> AdapterFiles:
        from sluice_files.credentials import read_credentials
        from sluice_files.models import fetch_adapter

        cache = self._paths.cache if self._slot.spec.model.cache_claim else self._own / adapter.name
        cache.mkdir(parents=True, exist_ok=True)
        try:
            credentials = read_credentials(self._lora.credentials if self._lora else None, adapter.uri)
            found = fetch_adapter(adapter.uri, cache, credentials, most=MAX_BYTES)
        except FileError as error:
            message = error.in_field("source.uri", f"lora.credentials of the engine {self._slot.engine}")
            raise AdapterRejected(_REASONS.get(error.failure, Reason.DOWNLOAD_FAILED), message) from None
        return AdapterFiles(found.folder, cache)
