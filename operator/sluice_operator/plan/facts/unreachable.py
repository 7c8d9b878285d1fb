"""Pods on nodes that do not answer: nobody knows whether they have stopped, and Kubernetes waits for the node."""

from collections.abc import Iterable

from sluice_operator.observe.views import Key, PodView
from sluice_operator.observe.world import World


def unreachable(world: World, pods: Iterable[PodView]) -> str:
    """What to say of the first of some pods that is on such a node: since when, and how a person ends it.

    Empty when there is none. A pod is not replaced before it is known to have stopped: two would write to one volume.
    """
    for pod in pods:
        node = world.nodes.get(Key("Node", "", pod.node))
        if pod.ended or node is None or node.ready:
            continue
        name = node.key.name
        since = f" since {node.not_ready_since:%Y-%m-%d %H:%M} UTC" if node.not_ready_since else ""
        return (
            f"Node {name} has not been ready{since}, and nobody can say whether pod {pod.key.name} has stopped there. "
            f"Bring the node back; or, once it is surely off, delete it (kubectl delete node {name}) or say so "
            f"(kubectl taint node {name} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute)."
        )
    return ""
