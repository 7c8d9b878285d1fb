"""The few things that this package asks of a running cluster, by way of kubectl."""

import json
from pathlib import Path
from typing import Any

from dev.cluster.tools import stable_path
from dev.commands import run, succeeds

GPU = "nvidia.com/gpu"


class Kubectl:
    """kubectl for one cluster."""

    def __init__(self, kubeconfig: Path) -> None:
        """Every call names this kubeconfig: the user's own is never touched."""
        self._command: list[str | Path] = [stable_path("kubectl"), f"--kubeconfig={kubeconfig}"]

    def answers(self) -> bool:
        """Whether there is a cluster at the other end."""
        return succeeds([*self._command, "get", "--raw=/readyz", "--request-timeout=5s"])

    def get(self, *what: str) -> dict[str, Any]:
        """What `kubectl get ... -o json` says."""
        found: dict[str, Any] = json.loads(run([*self._command, "get", *what, "--output=json"]))
        return found

    def apply(self, *objects: dict[str, Any]) -> None:
        """Make or change these objects, by server-side apply."""
        manifest = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        apply = ["apply", "--server-side", "--force-conflicts", "--field-manager=sluice-dev", "--filename=-"]
        run([*self._command, *apply], stdin=manifest)

    def forget_released(self, volume: str) -> None:
        """Remove a PersistentVolume whose claim is gone for good: Kubernetes never binds it again."""
        phase = run([*self._command, "get", "pv", volume, "--ignore-not-found", "--output=jsonpath={.status.phase}"])
        if phase == "Released":
            run([*self._command, "delete", "pv", volume])

    def node_is_ready(self, name: str) -> bool:
        """Whether the node says so itself."""
        path = 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'
        wait = ["get", "node", name, "--ignore-not-found", f"--output={path}"]
        return run([*self._command, *wait]) == "True"

    def set_gpus(self, label: str, count: int) -> list[str]:
        """Make each node with the label say that it has so many GPUs; returns the nodes' names."""
        gpus = {GPU: str(count)}
        patch = json.dumps({"status": {"capacity": gpus, "allocatable": gpus}})
        names = [node["metadata"]["name"] for node in self.get("nodes", f"--selector={label}")["items"]]
        for name in names:
            run([*self._command, "patch", "node", name, "--subresource=status", f"--patch={patch}"])
        return names

    def label_nodes(self, label: str) -> None:
        """Put a label on all nodes."""
        run([*self._command, "label", "nodes", "--all", "--overwrite", label])
