"""What pods must trust is written in every namespace that has any of ours, whatever another namespace refuses."""

from typing import Any

import pytest

from sluice_operator.cluster.errors import ApiError
from sluice_operator.cluster.writes import Cluster
from sluice_operator.observe.parse import parse
from sluice_operator.observe.store import Store
from sluice_operator.reconcile.trust import publish_trust_everywhere
from sluice_operator.settings import Settings
from tests.unit.operator import bodies

SETTINGS = Settings(
    namespace="sluice-system", pod_name="operator-0", report_url="https://x", trainer_image="t", server_image="s"
)


class Applied(Cluster):
    """Keeps where something was applied; one namespace takes nothing."""

    def __init__(self, trusted: bytes, refuses: str) -> None:
        self.trusted = trusted
        self.refuses = refuses
        self.namespaces: list[str] = []

    async def apply(self, manifest: Any) -> Any:
        namespace = manifest["metadata"]["namespace"]
        if namespace == self.refuses:
            raise ApiError(403, "Forbidden", "the namespace is being terminated")
        self.namespaces.append(namespace)


@pytest.mark.parametrize(
    ("trusted", "refuses", "expected"),
    [
        (b"PEM", "", ["a", "b", "sluice-system"]),
        (b"PEM", "a", ["b", "sluice-system"]),
        (b"", "", []),
    ],
    ids=["everywhere", "one namespace is on its way out", "reports go without TLS"],
)
async def test_trust_is_published(trusted: bytes, refuses: str, expected: list[str]) -> None:
    store = Store()
    store.put(parse("FineTuneJob", bodies.finetunejob("tone", 5, namespace="a")), seen=True)
    store.put(parse("InferenceEngine", bodies.engine("chat", 6, namespace="b")), seen=True)
    cluster = Applied(trusted, refuses)
    await publish_trust_everywhere(cluster, store, SETTINGS)
    assert cluster.namespaces == expected
