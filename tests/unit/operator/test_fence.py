"""What is set aside is told: in its status, by an event, in the metrics; and it is looked at again in a while."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from dev.simulate.builder import NOW, WorldBuilder
from sluice_operator.cluster.cluster import Cluster
from sluice_operator.exposition import WorldCollector
from sluice_operator.facts.nodes import node_unusable
from sluice_operator.facts.outcomes import all_outcomes
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import SetAside, job_key, pool_key
from sluice_operator.plan import inventory, readiness
from sluice_operator.reconcile import job as job_module
from sluice_operator.reconcile.context import Context
from sluice_operator.reconcile.job import reconcile_job
from sluice_operator.reconcile.pool import reconcile_pool
from sluice_operator.reconcile.reconcilers import RECONCILERS
from sluice_operator.settings import Settings
from sluice_operator.status.aside import LOOKED_AT_AGAIN

EVIL = job_key("evil", "x")
SETTINGS = Settings("sluice", "sluice-0", "http://progress", "trainer", "server")


class Told(Cluster):
    """A cluster that notes what is written, and has the store know it."""

    def __init__(self, builder: WorldBuilder) -> None:
        no_api: Any = None
        leader: Any = SimpleNamespace(term=1)
        super().__init__(no_api, builder.store, leader, "sluice-0")
        self.builder = builder
        self.written: list[str] = []

    async def require(self, key: Key, uid: str) -> None:
        assert self.builder.world.jobs[key].metadata.uid == uid

    async def create(self, manifest: Any) -> Any:
        self.written.append(f"create {manifest['metadata']['name']}")
        return {**manifest, "metadata": {**manifest["metadata"], "uid": "x"}}

    async def apply(self, manifest: Any) -> Any:
        return manifest

    async def event(self, key: Key, uid: str, level: str, reason: str, message: str) -> None:
        self.written.append(f"event {key.name} {level} {reason}")

    async def apply_status(self, key: Key, uid: str, status: Any) -> None:
        self.written.append(f"status {key.name} {status['summary']}")
        job = self.builder.world.jobs[key]
        self.builder.version += 1
        body = job.model_dump(mode="json", by_alias=True, exclude_none=True)
        body["metadata"]["resourceVersion"] = str(self.builder.version)
        self.builder.put(type(job).model_validate({**body, "status": status}))


@pytest.fixture
def builder() -> WorldBuilder:
    made = WorldBuilder()
    made.node(1)
    made.job("x", 1, "evil")
    made.job("victim", 1)
    return made


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of jobs at which an exception is raised."""
    names = ["evil/x"]

    def bad(world: Any, job: Any) -> Any:
        if job.metadata.full_name in names:
            raise ZeroDivisionError("poison")
        return all_outcomes(world, job)

    monkeypatch.setattr(readiness, "all_outcomes", bad)
    return names


async def test_object_set_aside_reports_internal_error_and_stops_no_other(
    builder: WorldBuilder, poison: list[str]
) -> None:
    woken: list[Key] = []
    cluster = Told(builder)
    context = Context(builder.store, cluster, SETTINGS, woken.append)
    await reconcile_pool(pool_key("default"), context, NOW)
    assert cluster.written == ["create victim-jobvicti-train-1"]
    assert EVIL in woken
    assert await reconcile_job(EVIL, context, NOW) == LOOKED_AT_AGAIN
    assert cluster.written[1:] == ["event x Warning InternalError", "status x InternalError"]
    await reconcile_job(EVIL, context, NOW + timedelta(minutes=1))
    assert cluster.written[3:] == []
    assert set(builder.world.set_aside) == {EVIL}, "what we write ourselves changes nothing"

    poison.clear()
    await reconcile_job(EVIL, context, NOW + LOOKED_AT_AGAIN)
    assert builder.world.set_aside == {}
    assert cluster.written[3:] == ["status x Pending", "event x Normal Pending"]
    assert woken.count(pool_key("default")) == 1


async def test_job_whose_plan_raises_reports_internal_error(
    builder: WorldBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(*_: object) -> None:
        raise OverflowError("date value out of range")

    monkeypatch.setattr(job_module, "plan_job", bad)
    cluster = Told(builder)
    await reconcile_job(EVIL, Context(builder.store, cluster, SETTINGS), NOW)
    assert cluster.written == ["event x Warning InternalError", "status x InternalError"]
    message = builder.world.jobs[EVIL].status.conditions[0].message
    assert message.startswith("OverflowError: date value out of range")
    assert "Correct what is out of the ordinary" in message


class NothingToDo:
    """An empty queue."""

    def failing(self) -> tuple[Key, ...]:
        return ()

    def waiting(self) -> tuple[tuple[Key, float], ...]:
        return ()


def test_objects_set_aside_metric_counts_one_object(builder: WorldBuilder) -> None:
    registry = CollectorRegistry()
    registry.register(WorldCollector(builder.store, lambda: True, dict, NothingToDo()))

    def shown(kind: str) -> float | None:
        return registry.get_sample_value("sluice_objects_set_aside", {"kind": kind})

    assert shown("FineTuneJob") == 0
    builder.store.findings.leave_alone(SetAside(EVIL, "", at=NOW))
    assert (shown("FineTuneJob"), shown("GPUPool")) == (1, 0)


async def test_node_set_aside_is_looked_at_again_after_a_while(
    builder: WorldBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: nobody reconciled its key, the queue tried that for ever, and the node stayed aside until it changed."""
    node, woken, broken = Key("Node", "", "n1"), list[Key](), [True]

    def bad(view: Any, *rest: Any) -> str:
        if broken:
            raise ZeroDivisionError("poison")
        return node_unusable(view, *rest)

    monkeypatch.setattr(inventory, "node_unusable", bad)
    context = Context(builder.store, Told(builder), SETTINGS, woken.append)
    await reconcile_pool(pool_key("default"), context, NOW)
    assert set(builder.world.set_aside) == {node}
    assert [key for key in woken if key.kind == "Node"] == [node]
    assert await RECONCILERS["Node"](node, context, NOW) == LOOKED_AT_AGAIN
    broken.clear()
    assert await RECONCILERS["Node"](node, context, NOW + LOOKED_AT_AGAIN) is None
    assert builder.world.set_aside == {}
    assert woken[-1] == pool_key("default")
