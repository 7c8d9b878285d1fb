"""When a NetworkPolicy is written, and when it is removed."""

from typing import Any

from sluice_operator.build.network_policy import engine_policy
from sluice_operator.observe.store import Store
from sluice_operator.reconcile.network import keep_policy
from sluice_operator.settings import Network, Settings
from tests.unit.build.manifests import API_SERVERS, ASKED_BY_TEAM_B, CUDA, ENGINE

OFF = Settings(**{**vars(CUDA), "network": Network(workloads=False)})


class Writes:
    """A cluster that says what was asked of it."""

    def __init__(self) -> None:
        self.term = 1
        self.done: list[str] = []

    async def apply(self, manifest: dict[str, Any]) -> None:
        self.done.append(f"apply {manifest['metadata']['name']}")

    async def remove(self, manifest: dict[str, Any]) -> None:
        self.done.append(f"remove {manifest['metadata']['name']}")


async def test_a_policy_is_written_once_a_term_and_when_it_changes() -> None:
    store, cluster = Store(), Writes()

    async def keep(engine: Any = ENGINE, settings: Settings = CUDA) -> list[str]:
        cluster.done.clear()
        policy = engine_policy(engine, API_SERVERS, settings)
        await keep_policy(policy, store, cluster, settings)  # type: ignore[arg-type]
        return list(cluster.done)

    assert await keep() == ["apply chat-network"]
    assert await keep() == []
    assert await keep(ASKED_BY_TEAM_B) == ["apply chat-network"]
    cluster.term = 2
    assert await keep(ASKED_BY_TEAM_B) == ["apply chat-network"]
    assert await keep(settings=OFF) == ["remove chat-network"]
    assert await keep(settings=OFF) == []
