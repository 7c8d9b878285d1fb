"""Volumes that many pods may write at once: a folder on this machine behind a claim."""

from pathlib import Path
from typing import Any

from dev.cluster.kubectl import Kubectl
from dev.cluster.provider import kubeconfig, state_folder

SIZE = "5Gi"


def volume(namespace: str, claim: str) -> Path:
    """Make a claim and the folder behind it, unless they are there; returns the folder."""
    folder = state_folder() / "volumes" / namespace / claim
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)
    kubectl = Kubectl(kubeconfig())
    kubectl.forget_released(f"{namespace}-{claim}")
    kubectl.apply(_namespace(namespace), *_claimed_volume(namespace, claim, folder))
    return folder


def _namespace(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def _claimed_volume(namespace: str, claim: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    name = f"{namespace}-{claim}"
    size = {"storage": SIZE}
    persistent_volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": size,
            "accessModes": ["ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "hostPath": {"path": str(folder), "type": "Directory"},
            "claimRef": {"namespace": namespace, "name": claim},
        },
    }
    volume_claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"namespace": namespace, "name": claim},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "",
            "volumeName": name,
            "resources": {"requests": size},
        },
    }
    return persistent_volume, volume_claim
