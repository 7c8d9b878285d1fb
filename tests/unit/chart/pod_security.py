"""The Pod Security Standard `restricted`, as far as our pods can break it."""

from collections.abc import Iterator
from typing import Any

VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
HOST = ("hostNetwork", "hostPID", "hostIPC")


def violations(pod: dict[str, Any]) -> list[str]:
    """What the API server would say against a pod spec where `restricted` is enforced; ours add a read-only root."""
    return [*_of_pod(pod), *(why for container in _containers(pod) for why in _of_container(pod, container))]


def _of_pod(pod: dict[str, Any]) -> Iterator[str]:
    for field in HOST:
        if pod.get(field):
            yield field
    for volume in pod.get("volumes", []):
        if kinds := set(volume) - {"name"} - VOLUMES:
            yield f"volume {volume['name']}: {', '.join(kinds)}"


def _of_container(pod: dict[str, Any], container: dict[str, Any]) -> Iterator[str]:
    name, own = container["name"], container.get("securityContext", {})
    both = {**pod.get("securityContext", {}), **own}
    if both.get("runAsNonRoot") is not True:
        yield f"{name}: runAsNonRoot is not true"
    if both.get("runAsUser") == 0:
        yield f"{name}: runAsUser is 0"
    if both.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield f"{name}: seccompProfile is not RuntimeDefault"
    if own.get("allowPrivilegeEscalation") is not False:
        yield f"{name}: allowPrivilegeEscalation is not false"
    if own.get("capabilities", {}).get("drop") != ["ALL"] or own["capabilities"].get("add"):
        yield f"{name}: capabilities are not dropped"
    if own.get("readOnlyRootFilesystem") is not True:
        yield f"{name}: the root filesystem is writable"
    if own.get("privileged"):
        yield f"{name}: privileged"
    if any("hostPort" in port for port in container.get("ports", [])):
        yield f"{name}: hostPort"


def _containers(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        yield from pod.get(kind, [])
