"""JSON patches. Each one first tests what it relies on."""

from datetime import UTC, datetime
from typing import Any

from sluice_api.meta import BOUND_AT_ANNOTATION, SCHEDULING_GATE
from sluice_operator.cluster.client import Body

HOSTNAME_LABEL = "kubernetes.io/hostname"


def binding(pod: Body, uid: str, hostname: str, at: datetime) -> list[Body]:
    """The patch that takes Sluice's gate off a pod and ties the pod to a node; empty if the gate is off already."""
    gates = [gate["name"] for gate in pod["spec"].get("schedulingGates") or ()]
    if SCHEDULING_GATE not in gates:
        return []
    gate = f"/spec/schedulingGates/{gates.index(SCHEDULING_GATE)}"
    stamp = at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return [
        test("/metadata/uid", uid),
        test(f"{gate}/name", SCHEDULING_GATE),
        {"op": "remove", "path": gate},
        *_entry("/spec/nodeSelector", HOSTNAME_LABEL, hostname, present=bool(pod["spec"].get("nodeSelector"))),
        *_entry("/metadata/annotations", BOUND_AT_ANNOTATION, stamp, present=bool(pod["metadata"].get("annotations"))),
    ]


def _entry(path: str, name: str, value: str, *, present: bool) -> list[Body]:
    """Put an entry into a map.

    Args:
        present: whether the map exists; otherwise it is made.
    """
    if not present:
        return [add(path, {name: value})]
    return [add(f"{path}/{name.replace('~', '~0').replace('/', '~1')}", value)]


def test(path: str, value: Any) -> Body:
    """An operation that lets the whole patch fail unless the value is this."""
    return {"op": "test", "path": path, "value": value}


def add(path: str, value: Any) -> Body:
    """An operation that sets a value, whether there is one or not."""
    return {"op": "add", "path": path, "value": value}
