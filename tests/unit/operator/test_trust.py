"""What pods must trust is written in every namespace that has any of ours, whatever another namespace refuses."""

import asyncio
from typing import Any, cast

import pytest
from kubernetes.aio.client import ApiClient

import sluice_operator.__main__ as main
from sluice_operator.cluster.client import Api
from sluice_operator.cluster.cluster import Cluster
from sluice_operator.cluster.errors import ApiError, Gone, NotLeading
from sluice_operator.observe.parse import parse
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import pool_key
from sluice_operator.reconcile.context import Context
from sluice_operator.reconcile.trust import publish_trust_everywhere
from sluice_operator.settings import Settings
from tests.unit.operator import bodies

SETTINGS = Settings(
    namespace="sluice-system", pod_name="operator-0", report_url="https://x", trainer_image="t", server_image="s"
)


TERMINATING = ApiError(403, "Forbidden", "the namespace is being terminated")
DELETED = Gone("it was deleted between a look and the write")


class Applied(Cluster):
    """Keeps where something was applied; one namespace takes nothing."""

    def __init__(self, refuses: str, error: Exception = TERMINATING) -> None:
        self.refuses = refuses
        self.error = error
        self.namespaces: list[str] = []

    async def apply(self, manifest: Any) -> Any:
        namespace = manifest["metadata"]["namespace"]
        if namespace == self.refuses:
            raise self.error
        self.namespaces.append(namespace)


@pytest.mark.parametrize(
    ("case", "trusted", "refuses", "error", "expected"),
    [
        ("everywhere", b"PEM", "", TERMINATING, ["a", "b", "sluice-system"]),
        ("one namespace is on its way out", b"PEM", "a", TERMINATING, ["b", "sluice-system"]),
        ("and is gone in that moment: it ended the leader", b"PEM", "a", DELETED, ["b", "sluice-system"]),
        ("another leads meanwhile", b"PEM", "b", NotLeading("another"), ["a"]),
        ("reports go without TLS", b"", "", TERMINATING, []),
    ],
)
async def test_trust_is_published_in_every_namespace(
    case: str, trusted: bytes, refuses: str, error: Exception, expected: list[str]
) -> None:
    cluster = Applied(refuses, error)
    await publish_trust_everywhere(Context(two_teams(), cluster, SETTINGS, authority=trusted))
    assert cluster.namespaces == expected, case


def two_teams() -> Store:
    store = Store()
    store.put(parse("FineTuneJob", bodies.finetunejob("tone", 5, namespace="a")), seen=True)
    store.put(parse("InferenceEngine", bodies.engine("chat", 6, namespace="b")), seen=True)
    return store


async def test_trust_of_a_slow_namespace_delays_no_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A webhook that does not answer is waited for, in each namespace, five times."""

    class Silent(Applied):
        async def apply(self, manifest: Any) -> Any:
            await asyncio.Event().wait()

    async def nothing(*_: object) -> None:
        """Of the API server."""

    for name in ("move_leader_label", "refresh_all"):
        monkeypatch.setattr(main, name, nothing)
    operator = main.Operator(SETTINGS, Api(cast("ApiClient", None)))
    operator.store.put(parse("FineTuneJob", bodies.finetunejob("tone", 5, namespace="a")), seen=True)
    operator.context.cluster, operator.context.authority = Silent(""), b"PEM"
    operator.queue._asked[pool_key("gone")] = -7200.0
    decided = asyncio.Event()

    async def reconcile(_key: Key) -> None:
        decided.set()

    monkeypatch.setattr(operator, "reconcile", reconcile)
    leading = asyncio.create_task(operator.lead())
    try:
        await asyncio.wait_for(decided.wait(), 10)
        assert all(seconds < 60 for _, seconds in operator.queue.waiting()), "since it leads, not since it watches"
    finally:
        await main.end(leading)
