"""Where a slot's two containers find each other: folders, ports and the control routes.

Standard library only: preStop runs from here and has to start in a moment.
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
"""No request may have begun for so long before vLLM stops: what still travels to a pod that left its endpoints."""

SHUTDOWN_SECONDS = 10
"""How long vLLM may take after SIGTERM for what is in flight; nothing is, after an ordinary drain. With
QUIET_SECONDS and EXIT_SECONDS it fits into pods.GRACE_MARGIN_SECONDS."""

EXIT_SECONDS = 5
"""How long vLLM takes to exit, at most; what has not ended by then is ended."""


def serve_port() -> int:
    """Where vLLM listens in this container."""
    return int(os.environ.get(SERVE_PORT_ENV, pods.SERVE_PORT))


@dataclass(frozen=True)
class Place:
    """Folders and ports of one slot."""

    root: Path
    serve_port: int
    agent_port: int

    @classmethod
    def here(cls) -> "Place":
        """This container's, as the environment says."""
        return cls(
            root=Path(os.environ.get(ROOT_ENV, "/")),
            serve_port=serve_port(),
            agent_port=int(os.environ.get(AGENT_PORT_ENV, pods.AGENT_PORT)),
        )

    def at(self, path: str | os.PathLike[str]) -> Path:
        """An absolute path of the pod contract, on this machine."""
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
    def scratch(self) -> Path:
        """This container's own disk."""
        return self.at(pods.SCRATCH)
