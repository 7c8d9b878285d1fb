"""A cluster that the developer has, used as it is: only if SLUICE_KUBECONFIG names its kubeconfig."""

import os
from pathlib import Path

from dev.cluster import tools
from dev.cluster.kubectl import Kubectl
from dev.errors import DevError

VARIABLE = "SLUICE_KUBECONFIG"


class Existing:
    """Somebody else's cluster: never started, never stopped, its nodes never patched."""

    name = "existing"

    def __init__(self, state: Path) -> None:
        """Only a link to the kubeconfig is kept below `state`."""
        self.state = state

    def healthy(self) -> bool:
        """Whether it answers."""
        tools.tools()
        kubeconfig = self.state / "kubeconfig"
        return kubeconfig.exists() and Kubectl(kubeconfig).answers()

    def up(self) -> None:
        """Link its kubeconfig to the stable path."""
        given = Path(os.environ[VARIABLE]).expanduser().resolve()
        if not given.exists():
            raise DevError(f"{VARIABLE} names {given}, which isn't there")
        self.state.mkdir(parents=True, exist_ok=True)
        kubeconfig = self.state / "kubeconfig"
        kubeconfig.unlink(missing_ok=True)
        kubeconfig.symlink_to(given)
        if not self.healthy():
            raise DevError(f"the cluster of {VARIABLE}={given} doesn't answer: `kubectl --kubeconfig {given} version`")

    def down(self) -> None:
        """Forget it."""
        (self.state / "kubeconfig").unlink(missing_ok=True)

    def set_gpus(self, count: int) -> list[str]:  # noqa: ARG002
        """Its GPUs are its own."""
        return []

    def load(self, archive: Path) -> None:  # noqa: ARG002
        """Its images come from wherever they come from."""
        raise DevError("images aren't loaded into a cluster of yours: push them to a registry that it can reach")
