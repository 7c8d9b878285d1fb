"""What pods of a namespace trust, so that they know the operator when they report to it."""

from sluice_api.meta import TRUST_LABEL
from sluice_operator.writes import Manifest

NAME = "sluice-progress-ca"
ENTRY = "ca.crt"


def trust(namespace: str, trusted: bytes) -> Manifest:
    """The ConfigMap with the authority of the operator's certificate. It is nobody's child: all pods there read it."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": NAME,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/part-of": "sluice", TRUST_LABEL: "true"},
        },
        "data": {ENTRY: trusted.decode()},
    }
