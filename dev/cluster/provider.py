"""Which cluster is used, and bringing it up and down. Start reading here.

The first that applies: the cluster of SLUICE_KUBECONFIG; kind, where Docker answers; one of our own.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from dev.cache import cache_folder, locked
from dev.cluster.existing import VARIABLE, Existing
from dev.cluster.kind import Kind, available
from dev.cluster.mounts import choose_mounts
from dev.cluster.own import Own
from dev.environment import environment
from dev.errors import DevError
from dev.progress import step

DEFAULT_GPUS = 2


class Provider(Protocol):
    """What a cluster can do, whoever makes it."""

    name: str
    state: Path

    def healthy(self) -> bool:
        """Whether it can be used now."""

    def up(self) -> None:
        """Bring it up, over whatever is left of an earlier one."""

    def down(self) -> None:
        """Remove it."""

    def set_gpus(self, count: int) -> list[str]:
        """Make its fake GPUs so many; returns the names of the nodes that have them."""

    def load(self, archive: Path) -> None:
        """Give its nodes the images of an OCI archive."""


def state_folder() -> Path:
    """Where the running cluster's kubeconfig, volumes and all else are."""
    return cache_folder() / "cluster"


def kubeconfig() -> Path:
    """The stable path of the running cluster's kubeconfig."""
    return state_folder() / "kubeconfig"


def up(gpus: int | None) -> Provider:
    """Bring the cluster up; when it is up already, only the mounts (and the GPUs, if asked for) are renewed."""
    with locked("cluster"):
        provider = choose()
        if _in_use() not in (None, provider.name):
            raise DevError(f"a cluster of the provider {_in_use()} is up: `python3 -m dev down` first")
        if not provider.healthy():
            step(f"bringing up a cluster, provider: {provider.name}")
            _name_file().unlink(missing_ok=True)
            provider.up()
            _name_file().parent.mkdir(parents=True, exist_ok=True)
            _name_file().write_text(provider.name)
            gpus = DEFAULT_GPUS if gpus is None else gpus
        if provider.name == Own.name:
            choose_mounts(provider.state, environment())
        if gpus is not None:
            provider.set_gpus(gpus)
        return provider


def down() -> None:
    """Remove the cluster that is up, or what is left of one."""
    with locked("cluster"):
        (running() or Own(state_folder())).down()
        _name_file().unlink(missing_ok=True)


def choose() -> Provider:
    """The provider that applies here."""
    if os.environ.get(VARIABLE):
        return Existing(state_folder())
    if available():
        return Kind(state_folder())
    return Own(state_folder())


def running() -> Provider | None:
    """The provider whose cluster is up; None if there is none."""
    providers: dict[str, Callable[[Path], Provider]] = {Existing.name: Existing, Kind.name: Kind, Own.name: Own}
    name = _in_use()
    return providers[name](state_folder()) if name else None


def must_be_running() -> Provider:
    """The provider whose cluster is up; an error if there is none."""
    provider = running()
    if provider is None:
        raise DevError("no cluster is up: `python3 -m dev up`")
    return provider


def _in_use() -> str | None:
    return _name_file().read_text() if _name_file().exists() else None


def _name_file() -> Path:
    return state_folder() / "provider"
