"""An application in the cluster that asks an engine all the while."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dev.cluster.images import DEV_IMAGES
from tests.e2e.kubectl import Object, running
from tests.e2e.objects import ENGINE
from tests.e2e.team import SOON, Team

POD = "application"
FIRST_ANSWERS = 4
SCRIPT = Path(__file__).with_name("load_in_pod.py")


@dataclass
class Asked:
    """What came of it."""

    answers: list[Object] = field(default_factory=list)

    @property
    def failed(self) -> list[Object]:
        """Requests that got an error, and streams that were cut."""
        return [a for a in self.answers if "error" in a or a["finish"] not in {"stop", "length"}]

    def count(self, *, stream: bool) -> int:
        """How many requests of a kind there were."""
        return sum(1 for answer in self.answers if answer["stream"] is stream)


@contextmanager
def asking(team: Team) -> Iterator[Asked]:
    """Ask from before the block begins until it ends; then the answers are there."""
    asked = Asked()
    team.delete("pod", POD)
    team.apply(_script(), pod(POD, ["python3", f"/script/{SCRIPT.name}", f"http://{ENGINE}/v1", ENGINE]))
    team.wait("pods", POD, lambda pod: pod["status"].get("phase") == "Running", "the application runs")
    _await_answers(team)
    try:
        yield asked
        team.kubectl("exec", POD, f"--namespace={team.name}", "--", "touch", "/scratch/stop")
        team.wait("pods", POD, lambda pod: pod["status"]["phase"] == "Succeeded", "the application is done", SOON)
        asked.answers += [json.loads(line) for line in _lines(team)]
    finally:
        team.delete("pod", POD, wait=False)


def _await_answers(team: Team) -> None:
    command = team.kubectl.command("logs", POD, f"--namespace={team.name}", "--follow")
    with running(command, SOON) as logs:
        for count, _ in enumerate(logs.stdout or (), start=1):
            if count >= FIRST_ANSWERS:
                return
    pytest.fail(f"the application got no answers: {_lines(team)}")


def _lines(team: Team) -> list[str]:
    return team.kubectl("logs", POD, f"--namespace={team.name}").splitlines()


def _script() -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": POD},
        "data": {SCRIPT.name: SCRIPT.read_text()},
    }


def pod(name: str, command: list[str]) -> Object:
    """A pod under Pod Security `restricted`, with the ConfigMap of its name at /script and a disk at /scratch."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "main",
                    "image": DEV_IMAGES[0],
                    "imagePullPolicy": "Never",
                    "command": command,
                    "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [
                        {"name": "script", "mountPath": "/script"},
                        {"name": "scratch", "mountPath": "/scratch"},
                    ],
                }
            ],
            "volumes": [
                {"name": "script", "configMap": {"name": name}},
                {"name": "scratch", "emptyDir": {}},
            ],
        },
    }
