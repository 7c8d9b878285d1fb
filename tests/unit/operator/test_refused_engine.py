"""What the API server refuses to make for an engine: its status says so, and it keeps no GPU meanwhile."""

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest

from dev.simulate.builder import NOW, WorldBuilder
from sluice_api.inferenceengine import InferenceEngine, InferenceEngineStatus
from sluice_operator.cluster.cluster import Cluster
from sluice_operator.cluster.errors import ApiError, NameTaken
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import engine_key, key_of
from sluice_operator.reconcile.context import Context
from sluice_operator.reconcile.engine import reconcile_engine
from sluice_operator.settings import Settings
from tests.unit.plan.worlds import allocated, describe

SETTINGS = Settings(namespace="s", pod_name="p", report_url="http://x", trainer_image="t", server_image="v")
TAKEN = NameTaken("Service chat is there already, and was made by helm. Delete it, or use another name.")
QUOTA = ApiError(403, "Forbidden", "deployments.apps is forbidden: exceeded quota: objects")
POD = 'pods "chat-0-x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, limited: 0'


class Refusing(Cluster):
    """An API server that refuses one kind, or the pods of Deployments."""

    def __init__(self, builder: WorldBuilder) -> None:
        self.builder, self._kept = builder, {}
        self.refuses: dict[str, ApiError] = {}
        self.pods_refused = ""
        self.applied: list[str] = []
        self.told: list[str] = []
        self.statuses = 0

    @property
    def term(self) -> int:
        return 1

    async def apply(self, manifest: dict[str, Any]) -> dict[str, Any]:
        if error := self.refuses.get(manifest["kind"]):
            raise error
        self.applied.append(manifest["kind"])
        if manifest["kind"] == "Deployment" and "uid" not in manifest["metadata"]:
            self.builder.slot(self.engine, int(manifest["metadata"]["labels"]["sluice.dev/slot"]), size=0)
        if manifest["kind"] == "Deployment":
            await self.scale_slot(Key("Deployment", "team", manifest["metadata"]["name"]), "", 1)
        return manifest

    async def scale_slot(self, key: Key, uid: str, size: int) -> None:
        assert uid or size
        slot = self.builder.world.slots[key]
        self.builder.version += 1
        self.builder.put(type(slot)(**{**{f: getattr(slot, f) for f in slot.__dataclass_fields__}, "size": size,
                                    "resource_version": self.builder.version}))  # fmt: skip

    async def apply_status(self, key: Key, uid: str, status: dict[str, Any]) -> None:
        assert uid == self.engine.metadata.uid
        self.statuses += 1
        self.builder.version += 1
        metadata = self.engine.metadata.model_copy(update={"resource_version": str(self.builder.version)})
        new = InferenceEngineStatus.model_validate(status)
        self.builder.put(self.builder.world.engines[key].model_copy(update={"status": new, "metadata": metadata}))

    async def event(self, key: Key, uid: str, level: str, reason: str, message: str) -> None:
        assert uid
        assert message
        self.told.append(f"{level} {key.name} {reason}")

    async def failed_create(self, maker: Key, since: datetime | None = None) -> str:
        assert (maker.kind, since is not None) == ("Deployment", True)
        return self.pods_refused

    @property
    def engine(self) -> InferenceEngine:
        return self.builder.world.engines[engine_key("team", "chat")]

    def look(self, after: int) -> timedelta | None:
        now = NOW + timedelta(seconds=after)
        return asyncio.run(reconcile_engine(key_of(self.engine), Context(self.builder.store, self, SETTINGS), now))

    @property
    def says(self) -> tuple[str, str]:
        ready = next(c for c in self.engine.status.conditions if c.type == "Ready")
        return ready.reason, ready.message


@pytest.fixture
def cluster() -> Refusing:
    """An engine of one replica, older than a job that waits for the one GPU."""
    builder = WorldBuilder()
    builder.node(1)
    builder.engine("chat", 1)
    builder.job("a", scheduling={"policy": "Queue"})
    return Refusing(builder)


@pytest.mark.parametrize(
    ("kind", "error", "reason"),
    [
        ("Service", TAKEN, "NameTaken"),
        ("Role", TAKEN, "NameTaken"),
        ("Deployment", QUOTA, "QuotaExceeded"),
        ("NetworkPolicy", TAKEN, "NameTaken"),
    ],
)
def test_refused_engine_reports_why_and_leaves_its_gpus_to_others(
    cluster: Refusing, kind: str, error: ApiError, reason: str
) -> None:
    assert describe(allocated(cluster.builder)) == "a waits WaitingForGPUs"
    cluster.refuses[kind] = error
    assert cluster.look(0) == timedelta(seconds=10)
    assert cluster.says == (reason, f"0 of 1 replicas serve. {error.message} It is tried again at 12:00:10 UTC.")
    assert [slot.state for slot in cluster.engine.status.slots] == ["Waiting"]
    assert describe(allocated(cluster.builder)) == "a takes n1"
    assert cluster.told == [f"Warning chat {reason}"]
    wrote = cluster.statuses
    assert cluster.look(5) == timedelta(seconds=5)
    assert cluster.statuses == wrote, "looking changes nothing, or each write would bring the next"
    assert cluster.look(10) == timedelta(seconds=20), "twice as long"
    seconds = [cluster.look(after) for after in (30, 70, 130)]
    assert seconds == [timedelta(seconds=pause) for pause in (40, 60, 60)], "up to a minute: people wait for it"
    cluster.refuses.clear()
    cluster.look(190)
    assert "Deployment" in cluster.applied
    assert cluster.says[0] == "NoneServing"
    assert describe(allocated(cluster.builder)) == "a waits WaitingForGPUs"


def test_engine_with_refused_pods_pauses_and_leaves_its_gpus_to_others(cluster: Refusing) -> None:
    cluster.look(0)
    cluster.pods_refused = POD
    assert not cluster.builder.world.engine_pods, "its Deployment could make none"
    assert cluster.look(4) == timedelta(seconds=1)
    assert describe(allocated(cluster.builder)) == "a waits WaitingForGPUs"
    assert cluster.look(5) == timedelta(seconds=10)
    assert cluster.says[0] == "QuotaExceeded"
    assert POD in cluster.says[1]
    assert [slot.size for slot in cluster.builder.world.slots.values()] == [0], "it would come in another's way"
    assert describe(allocated(cluster.builder)) == "a takes n1"
    cluster.look(15)
    assert [slot.size for slot in cluster.builder.world.slots.values()] == [1]
    assert cluster.look(20) == timedelta(seconds=20), "refused again"
    cluster.pods_refused = ""
    cluster.look(40)
    cluster.builder.slot(cluster.engine, 0, "n1")
    cluster.look(41)
    findings = cluster.builder.store.findings
    assert findings.last_pause(key_of(cluster.engine)), "its status does not say yet that it has its pod"
    cluster.look(42)
    assert not findings.last_pause(key_of(cluster.engine)), "the next refusal begins anew, with 10 s"
