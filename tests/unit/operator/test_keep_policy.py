"""When a NetworkPolicy is written, and when it is removed."""

from types import SimpleNamespace
from typing import Any

from sluice_operator.cluster.cluster import Cluster
from sluice_operator.manifests.network_policy import engine_policy
from sluice_operator.observe.store import Store
from sluice_operator.writes import Keep
from tests.unit.manifests.examples import API_SERVERS, ASKED_BY_TEAM_B, CUDA, ENGINE


class Kept(Cluster):
    """A cluster that says what was asked of it."""

    def __init__(self) -> None:
        self.leader: Any = SimpleNamespace(term=1)
        no_api: Any = None
        super().__init__(no_api, Store(), self.leader, "sluice-0")
        self.done: list[str] = []

    async def apply(self, manifest: dict[str, Any]) -> dict[str, Any]:
        self.done.append(f"apply {manifest['metadata']['name']}")
        return manifest

    async def remove(self, manifest: dict[str, Any]) -> None:
        self.done.append(f"remove {manifest['metadata']['name']}")


async def test_network_policy_is_written_once_a_term_and_when_it_changes() -> None:
    cluster = Kept()

    async def keep(engine: Any = ENGINE, *, wanted: bool = True) -> list[str]:
        cluster.done.clear()
        await cluster.do((Keep(engine_policy(engine, API_SERVERS, CUDA), wanted),))
        return list(cluster.done)

    assert await keep() == ["apply chat-network"]
    assert await keep() == []
    assert await keep(ASKED_BY_TEAM_B) == ["apply chat-network"]
    cluster.leader.term = 2
    assert await keep(ASKED_BY_TEAM_B) == ["apply chat-network"]
    assert await keep(wanted=False) == ["remove chat-network"]
    assert await keep(wanted=False) == []
