"""What a schema can't know is said as a condition, with field, value and remedy, at once.

What it can is in refusals.py. A namespace that a pool is not for: test_queues.py; what is wrong with data: tests/e2e.
"""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio

from sluice_api.meta import API_VERSION
from tests.integration.claim_scene import ClaimScene
from tests.integration.conftest import MakeOperator
from tests.integration.history import SLUICE
from tests.integration.nodes import MERGE_PATCH, Nodes
from tests.integration.progress_scene import Kube, until

pytestmark = pytest.mark.integration

Body = dict[str, Any]


class Pools:
    """The pools that a test has made."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self._kube = kube
        self._prefix = namespace
        self._names: list[str] = []

    async def add(self, name: str, **spec: Any) -> str:
        """A pool of the nodes that are labelled with its name, which is the test's own."""
        full = f"{self._prefix}-{name}"
        spec = {"nodeSelector": {"pool": full}, **spec}
        body = {"apiVersion": API_VERSION, "kind": "GPUPool", "metadata": {"name": full}, "spec": spec}
        await self._kube.call("POST", f"{SLUICE}/gpupools", body)
        self._names.append(full)
        return full

    async def says(self, name: str) -> str:
        """The message of a pool's condition, once it has one: jobs may be told before their pool is."""

        async def conditions() -> list[dict[str, str]]:
            found = await self._kube.call("GET", f"{SLUICE}/gpupools/{name}")
            return list(found.get("status", {}).get("conditions", ()))

        return "".join(condition["message"] for condition in await until(conditions))

    async def remove_all(self) -> None:
        """Clean up."""
        while self._names:
            await self._kube.call("DELETE", f"{SLUICE}/gpupools/{self._names.pop()}")


@pytest_asyncio.fixture
async def pools(kube: Kube, namespace: str) -> AsyncIterator[Pools]:
    """Pools, removed after the test."""
    made = Pools(kube, namespace)
    yield made
    await made.remove_all()


@pytest_asyncio.fixture
async def ready(scene: ClaimScene, nodes: Nodes, namespace: str, operator: MakeOperator, pools: Pools) -> ClaimScene:
    """Two nodes of two GPUs, and an operator that has decided once."""
    for number in (1, 2):
        await nodes.add(f"{namespace}-n{number}", gpus=2, pool=f"{namespace}-p")
    operator()
    await scene.job("first", policy="Queue")
    await scene.running("first")
    return scene


WRONG: list[tuple[str, Body, Body, str, list[str]]] = [
    ("a pool that does not exist", {}, {"pool": "nowhere"}, "PoolNotFound",
     ["spec.resources.pool: there is no GPUPool nowhere", "Create it, or use one of these"]),
    ("a pool without nodes", {"nodeSelector": {"pool": "none"}}, {}, "NoNodes",
     ["spec.resources.pool: pool", "no node that offers nvidia.com/gpu", "Add one, or use another pool"]),
    ("a pool that is for others", {"allowedNamespaces": {"matchLabels": {"gpus": "yes"}}}, {}, "NamespaceNotAllowed",
     ["spec.resources.pool: GPUPool", "is not for namespace", "spec.allowedNamespaces select"]),
    ("a share without sharing", {}, {"policy": "Shared"}, "PoolDoesNotShare",
     ["spec.scheduling.policy: Shared", "give each GPU to one pod", "Use Queue or Preempt"]),
    ("a share that MPS can't give", {"sharing": {"mode": "MPS", "replicas": 4}}, {"policy": "Shared", "share": "60%"},
     "ShareTooLarge", ["spec.scheduling.share: 60%", "one of 4 parts", "at most 25%"]),
    ("more GPUs than any node", {}, {"gpus": 3}, "ExceedsEveryNode",
     ["spec.resources.gpus: 3", "largest node of pool", "has 2", "Ask for at most 2"]),
    ("more than the pool", {}, {"gpus": 2, "nodes": 3}, "ExceedsPool",
     ["spec.resources.nodes: 3 pods of 2 GPU", "have room for 2", "Ask for at most 2, or add nodes"]),
    ("more than the namespace may ever have", {"quotas": [{"maxGPUs": 1}]}, {"gpus": 2}, "NamespaceQuota",
     ["spec.resources.gpus: 2", "1 at once", "Ask for fewer, or raise maxGPUs"]),
    ("a priority above the cap", {"quotas": [{"maxPriority": 5}]}, {"priority": 7}, "PriorityTooHigh",
     ["spec.scheduling.priority: 7 is above 5", "Lower it, or raise maxPriority"]),
    ("nodes of a pool by DRA", {"sharing": {"mode": "DRA"}}, {"scaleUpFirst": {}}, "ScaleUpNotSupported",
     ["spec.scheduling.scaleUpFirst", "served by DRA", "Remove scaleUpFirst"]),
]  # fmt: skip


async def test_bad_input_of_a_job_is_reported_at_once(ready: ClaimScene, pools: Pools, namespace: str) -> None:
    """The operator lists anew every five minutes, for which no test waits."""
    taken = []
    for number, (what, pool, job, reason, says) in enumerate(WRONG):
        name = job.get("pool") or await pools.add("p", **pool)
        await ready.job(f"wrong-{number}", **{"policy": "Queue", **job, "pool": name})
        message = await ready.job_says(f"wrong-{number}", reason)
        assert [part for part in says if part not in message] == [], f"{what}: {message}"
        taken += ready.stage_jobs(f"wrong-{number}")
        await pools.remove_all()
    assert taken == []


async def test_unknown_time_zone_is_reported_by_the_engine(ready: ClaimScene) -> None:
    window = {"start": "20:00", "end": "07:00", "timeZone": "Mars/Olympus"}
    await ready.engine("night", replicas=1, borrowWindows=[{"start": "08:00", "end": "09:00"}, window])

    def told() -> str | None:
        conditions = ready.status("inferenceengines", "night").get("conditions", ())
        return next((c["message"] for c in conditions if c["reason"] == "TimeZoneUnknown"), None)

    message = await ready.history.until(told, "the engine says so")
    assert message.startswith("spec.preemption.borrowWindows[1].timeZone: there is no time zone Mars/Olympus. Write")


async def test_pool_with_the_nodes_of_an_older_pool_names_that_pool(
    ready: ClaimScene, pools: Pools, namespace: str
) -> None:
    """The older one by its creation; of two of one second, by name."""
    label = {"nodeSelector": {"pool": f"{namespace}-p"}}
    elder, younger = await pools.add("a", **label), await pools.add("b", **label)
    await ready.job("tone", policy="Queue", pool=younger)
    await ready.job_says("tone", "NoNodes")
    said = await pools.says(younger)
    assert f"spec.nodeSelector: 2 more that it selects belong to pool {elder}, which is older. Narrow one" in said
    assert "2 of 2 nodes take pods." in await pools.says(elder)
    await ready.job("other", policy="Queue", pool=elder)
    await ready.running("other")


async def test_a_deadline_before_the_estimated_end_is_a_warning(ready: ClaimScene, kube: Kube) -> None:
    await ready.job_says("first", "Training")
    progress = {"attempt": 1, "step": 3, "totalSteps": 30, "secondsLeft": 200_000, "reportedAt": now()}
    place = f"{ready.path('finetunejobs', 'first')}/status"
    await kube.call("PATCH", place, {"status": {"progress": progress}}, MERGE_PATCH)

    def warned() -> str | None:
        reason, message = ready.waits_for("first")
        return message if reason == "Training" and "At this pace" in message else None

    message = await ready.history.until(warned, "it is warned")
    assert "not done when spec.activeDeadlineSeconds (86400) are over and it is stopped" in message
    assert "Create it again with more" in message


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
