"""Names, labels and owners of what the builders make."""

from sluice_api.resource import Resource
from sluice_operator.writes import Manifest


def app_labels(component: str, instance: str) -> dict[str, str]:
    """The labels by which people and dashboards find an object, whatever made it."""
    return {
        "app.kubernetes.io/name": f"sluice-{component}",
        "app.kubernetes.io/instance": instance,
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/part-of": "sluice",
        "app.kubernetes.io/managed-by": "sluice",
    }


def owned_by(owner: Resource, name: str, labels: dict[str, str]) -> Manifest:
    """Metadata of an object in the owner's namespace that the garbage collector removes with its owner."""
    return {
        "name": name,
        "namespace": owner.metadata.namespace,
        "labels": labels,
        "ownerReferences": [
            {
                "apiVersion": owner.api_version,
                "kind": owner.KIND.kind,
                "name": owner.metadata.name,
                "uid": owner.metadata.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
