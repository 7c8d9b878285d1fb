"""kubectl on a test's own control plane: what a user types, and what a user reads."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dev.cluster.tools import tools

CRDS = Path(__file__).parents[2] / "crds"
PRIORITIES = {"sluice-placeholder": 99, "sluice-inference": 100, "sluice-training": 1000}


@dataclass(frozen=True)
class Answer:
    """What kubectl printed."""

    ok: bool
    text: str


@dataclass(frozen=True)
class Kubectl:
    """One user of one cluster."""

    kubeconfig: Path
    user: str = ""

    def __call__(self, *words: str, **manifest: Any) -> Answer:
        """Run kubectl; `manifest` (or `manifests`) goes to its standard input as YAML, or `text` as it is."""
        text = manifest.pop("text", None)
        documents = manifest.get("manifests") or [manifest["manifest"]] if manifest else []
        run = subprocess.run(
            [
                tools()["kubectl"],
                f"--kubeconfig={self.kubeconfig}",
                *([f"--as={self.user}"] if self.user else []),
                *words,
            ],
            input=yaml.safe_dump_all(documents) if text is None else text,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Answer(run.returncode == 0, run.stdout + run.stderr)

    def must(self, *words: str, **manifest: Any) -> str:
        """Run kubectl and expect it to succeed."""
        answer = self(*words, **manifest)
        assert answer.ok, answer.text
        return answer.text

    def read(self, *words: str) -> dict[str, Any]:
        """`kubectl get` as an object."""
        found: dict[str, Any] = json.loads(self.must("get", *words, "-o", "json"))
        return found

    def as_user(self, user: str) -> "Kubectl":
        """The same cluster for another user."""
        return Kubectl(self.kubeconfig, user)

    def install_kinds(self) -> None:
        """Our custom resources, ready for use, and the priority classes without which no pod of ours is made."""
        self.must("apply", "--server-side", "-f", str(CRDS))
        self.must("apply", "--server-side", "-f", "-", manifests=[_priority(*pair) for pair in PRIORITIES.items()])
        self.must("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")


def _priority(name: str, value: int) -> dict[str, Any]:
    kind = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "preemptionPolicy": "Never"}
    return {**kind, "metadata": {"name": name}, "value": value}
