"""What a slot's two containers share: folders, ports, control routes, and the seconds of a shutdown.

Standard library only: the preStop hook imports it and has to start in a moment.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from sluice_api import pods

ROOT_ENV = "SLUICE_ROOT"
"""Folder under which all paths of the pod contract lie; `/` in a pod, a temporary folder in tests."""

SERVE_PORT_ENV = "SLUICE_SERVE_PORT"
AGENT_PORT_ENV = "SLUICE_AGENT_PORT"
"""Ports other than pods.SERVE_PORT and pods.AGENT_PORT, for several slots on one machine."""

SECRET_HEADER = "x-sluice-secret"
STATE_PATH = "/sluice/state"
TERMINATE_PATH = "/sluice/terminate"
START_PATH = "/sluice/start"
END_PATH = "/sluice/end"
LAYERS_PATH = "/sluice/layers"

QUIET_SECONDS = 2.0
"""vLLM stops when no request has begun for this long: a pod that has left its endpoints still gets some."""

SHUTDOWN_SECONDS = 10
"""How long vLLM lets requests in flight go on after SIGTERM; after an ordinary drain there are none. With
QUIET_SECONDS and EXIT_SECONDS it fits into pods.GRACE_MARGIN_SECONDS."""

EXIT_SECONDS = 5
"""How long vLLM may take to exit after that, before it is killed."""


def serve_port() -> int:
    """vLLM's port."""
    return int(os.environ.get(SERVE_PORT_ENV, pods.SERVE_PORT))


@dataclass(frozen=True)
class SlotPaths:
    """Folders and ports of one slot's pod, the same in both containers."""

    root: Path
    serve_port: int
    agent_port: int

    @classmethod
    def here(cls) -> "SlotPaths":
        """Those of this container, from its environment."""
        return cls(
            root=Path(os.environ.get(ROOT_ENV, "/")),
            serve_port=serve_port(),
            agent_port=int(os.environ.get(AGENT_PORT_ENV, pods.AGENT_PORT)),
        )

    def at(self, path: str | os.PathLike[str]) -> Path:
        """Where an absolute path of the pod contract lies on this machine."""
        return self.root / os.fspath(path).lstrip("/")

    @property
    def secret_file(self) -> Path:
        """The secret that agent and middleware share."""
        return self.at(pods.SECRET_FILE)

    @property
    def adapters(self) -> Path:
        """Checked adapters, one folder a version."""
        return self.at(pods.ADAPTERS)

    @property
    def cache(self) -> Path:
        """What was fetched from object stores and the hub."""
        return self.at(pods.CACHE)

    @property
    def scratch(self) -> Path:
        """This container's own disk."""
        return self.at(pods.SCRATCH)
