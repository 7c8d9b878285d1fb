"""A HorizontalPodAutoscaler on the engine, and the metric that it follows, which the journey sets."""

import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dev.cluster.certificates import Authority
from tests.e2e import load_generator, objects
from tests.e2e.kubectl import Object
from tests.e2e.metrics_in_pod import GROUP, METRIC
from tests.e2e.team import Team

NAME = "metrics"
SCRIPT = Path(__file__).with_name("metrics_in_pod.py")
LOOKS_EVERY = 15
"""Seconds at most: the controller manager's own default."""


@dataclass(frozen=True)
class Autoscaler:
    """One replica for each unit of the metric, from 1 to 3."""

    team: Team

    def sees(self, value: int) -> None:
        """Set the metric."""
        self._in_pod(f"echo {value} > /scratch/value")

    def wants(self, replicas: int) -> Object:
        """Wait until the autoscaler has written so many replicas."""
        return self.team.wait(
            "hpa",
            objects.ENGINE,
            lambda hpa: hpa.get("status", {}).get("desiredReplicas") == replicas,
            f"the autoscaler wants {replicas}",
            seconds=8 * LOOKS_EVERY,
        )

    def looked(self) -> Object:
        """Wait until the autoscaler could read the metric."""
        return self.team.wait("hpa", objects.ENGINE, _is_active, "the autoscaler reads the metric", 8 * LOOKS_EVERY)

    def has_decided(self) -> None:
        """Wait until the autoscaler has read the metric and done what follows, twice. Nothing announces that."""
        third = self._asked() + 3
        until = time.monotonic() + 8 * LOOKS_EVERY
        while self._asked() < third:
            assert time.monotonic() < until, "the autoscaler reads the metric no more"
            time.sleep(0.5)

    def _asked(self) -> int:
        return int(self._in_pod("cat /scratch/asked"))

    def _in_pod(self, command: str) -> str:
        return self.team.kubectl("exec", NAME, f"--namespace={self.team.name}", "--", "sh", "-c", command)


def _is_active(hpa: Object) -> bool:
    conditions = {c["type"]: c["status"] for c in hpa.get("status", {}).get("conditions", ())}
    return conditions.get("ScalingActive") == "True"


@contextmanager
def autoscaled(team: Team, folder: Path) -> Iterator[Autoscaler]:
    """While the block runs, an autoscaler decides on the engine's replicas. The metric is 2 at first."""
    authority = Authority(folder)
    authority.make()
    host = f"{NAME}.{team.name}.svc"
    pair = authority.serving(NAME, [f"DNS:{host}"])
    files = {SCRIPT.name: SCRIPT.read_text(), "tls.crt": pair.certificate.read_text(), "tls.key": pair.key.read_text()}
    script = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME}, "data": files}
    team.apply(script, _pod(), _service())
    team.wait("pods", NAME, lambda pod: pod["status"].get("phase") == "Running", "the metric is served")
    team.kubectl.apply(_api(team.name, authority.pair.certificate))
    team.apply(_hpa())
    try:
        yield Autoscaler(team)
    finally:
        team.delete("hpa", objects.ENGINE)
        team.kubectl("delete", "apiservice", _API, "--ignore-not-found")
        team.delete("pod,service,configmap", NAME, wait=False)


_API = "v1beta1.external.metrics.k8s.io"


def _api(namespace: str, certificate: Path) -> Object:
    group, version = GROUP.split("/")
    return {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": _API},
        "spec": {
            "group": group,
            "version": version,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "caBundle": _base64(certificate),
            "service": {"name": NAME, "namespace": namespace, "port": 443},
        },
    }


def _pod() -> Object:
    pod = load_generator.pod(NAME, ["python3", f"/script/{SCRIPT.name}"])
    pod["metadata"]["labels"] = {"app": NAME}
    return pod


def _service() -> Object:
    ports = [{"port": 443, "targetPort": 6443}]
    spec = {"selector": {"app": NAME}, "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME}, "spec": spec}


def _hpa() -> Object:
    follow = {"metric": {"name": METRIC}, "target": {"type": "AverageValue", "averageValue": "1"}}
    at_once = {"stabilizationWindowSeconds": 0}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": objects.ENGINE},
        "spec": {
            "scaleTargetRef": {
                "apiVersion": "sluice.dev/v1alpha1",
                "kind": "InferenceEngine",
                "name": objects.ENGINE,
            },
            "minReplicas": 1,
            "maxReplicas": 3,
            "metrics": [{"type": "External", "external": follow}],
            "behavior": {"scaleDown": at_once, "scaleUp": at_once},
        },
    }


def _base64(file: Path) -> str:
    return b64encode(file.read_bytes()).decode()
