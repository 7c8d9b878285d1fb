"""Nodes without a kubelet, and pods that do what a test says."""

from datetime import UTC, datetime
from typing import Any

from tests.integration.progress_scene import Kube

Body = dict[str, Any]
MERGE_PATCH = "application/merge-patch+json"
MAIN = ("trainer", "vllm")


class Nodes:
    """The nodes that a test has made."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._names: list[str] = []

    async def add(self, name: str, gpus: int = 2, cpu: str = "8", memory: str = "64Gi", **labels: str) -> str:
        """A node that is ready for pods. Nobody renews its lease: the control plane does not mind."""
        metadata = {"name": name, "labels": {"kubernetes.io/hostname": name, **labels}}
        await self._kube.call("POST", "/api/v1/nodes", {"metadata": metadata})
        self._names.append(name)
        amounts = {"cpu": cpu, "memory": memory, "ephemeral-storage": "1Ti", "pods": "110"}
        amounts["nvidia.com/gpu"] = str(gpus)
        ready = {"type": "Ready", "status": "True", "reason": "Test", "lastTransitionTime": _now()}
        status = {"capacity": amounts, "allocatable": amounts, "conditions": [ready]}
        await self._kube.call("PATCH", f"/api/v1/nodes/{name}/status", {"status": status}, MERGE_PATCH)
        # The node controller takes its taint off once it sees the node ready; a test need not wait for that.
        await self._kube.call("PATCH", f"/api/v1/nodes/{name}", {"spec": {"taints": None}}, MERGE_PATCH)
        return name

    async def remove(self, name: str) -> None:
        """Take a node away, and what was on it: nobody else would end the pods of a lost node."""
        self._names.remove(name)
        await self._kube.call("DELETE", f"/api/v1/nodes/{name}")

    async def remove_all(self) -> None:
        """Clean up."""
        for name in tuple(self._names):
            await self.remove(name)


async def add_volume(kube: Kube, namespace: str, claim: str) -> None:
    """A bound PersistentVolumeClaim that many pods may mount. There is nothing behind it."""
    size, modes = {"storage": "1Gi"}, ["ReadWriteMany"]
    volume = f"{namespace}-{claim}"
    spec = {"capacity": size, "accessModes": modes, "hostPath": {"path": "/nothing"}, "storageClassName": ""}
    spec["claimRef"] = {"namespace": namespace, "name": claim}
    await kube.call("POST", "/api/v1/persistentvolumes", {"metadata": {"name": volume}, "spec": spec})
    wanted = {"accessModes": modes, "resources": {"requests": size}, "storageClassName": "", "volumeName": volume}
    path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    await kube.call("POST", path, {"metadata": {"name": claim}, "spec": wanted})


async def set_pod_running(kube: Kube, pod: Body, *, ready: bool = True) -> None:
    """Have all containers of a pod run."""
    containers = [_container(name, {"running": {"startedAt": _now()}}, ready=ready) for name in _names(pod)]
    conditions = [{"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": _now()}]
    await _status(kube, pod, "Running", containers, conditions)


async def set_pod_waiting(kube: Kube, pod: Body, reason: str, message: str = "") -> None:
    """Have a pod's containers wait, for an image that cannot be pulled, say."""
    containers = [
        _container(name, {"waiting": {"reason": reason, "message": message}}, ready=False) for name in _names(pod)
    ]
    await _status(kube, pod, "Pending", containers, [])


async def finish_pod(kube: Kube, pod: Body, exit_code: int = 0, termination_message: str = "") -> None:
    """Have a pod end."""
    ended = {
        "terminated": {
            "exitCode": exit_code,
            "reason": "Error" if exit_code else "Completed",
            "message": termination_message,
            "startedAt": _now(),
            "finishedAt": _now(),
        }
    }
    containers = [_container(name, ended, ready=False) for name in _names(pod)]
    await _status(kube, pod, "Failed" if exit_code else "Succeeded", containers, [])


async def lose_pod(kube: Kube, pod: Body) -> None:
    """What becomes of a pod whose node is gone: it has failed, nobody knows how, and then it is gone too."""
    lost = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC", "lastTransitionTime": _now()}
    await _status(kube, pod, "Failed", [], [lost])
    place = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
    await kube.call("DELETE", place, {"gracePeriodSeconds": 0})


def _names(pod: Body) -> list[str]:
    return [container["name"] for container in pod["spec"]["containers"]]


def _container(name: str, state: Body, *, ready: bool) -> Body:
    return {
        "name": name,
        "state": state,
        "ready": ready,
        "started": ready,
        "restartCount": 0,
        "image": "nothing",
        "imageID": "",
        "lastState": {},
    }


async def _status(kube: Kube, pod: Body, phase: str, containers: list[Body], conditions: list[Body]) -> None:
    """Write a pod's status as its kubelet would; the scheduler's condition stays."""
    place = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
    now = await kube.call("GET", place)
    kept = [c for c in now["status"].get("conditions", []) if c["type"] not in {c["type"] for c in conditions}]
    status = {"phase": phase, "containerStatuses": containers, "conditions": [*kept, *conditions]}
    await kube.call("PATCH", f"{place}/status", {"status": status}, MERGE_PATCH)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
