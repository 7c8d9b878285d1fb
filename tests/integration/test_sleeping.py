"""An engine that sleeps while it lends, with the whole operator: what its agent reads, and what waits for its word.

The real scheduler binds the trainer to the GPU of the sleeping pod: both use its ResourceClaim. A test is the agent.
"""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from time import time_ns
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from sluice_api.meta import RESTARTED_AT_ANNOTATION, slot_gpus_name
from sluice_api.pods import TOKEN_AUDIENCE
from sluice_api.reports import ENGINE_REPORTS_PATH
from tests.integration.claim_scene import ClaimScene, is_gated, is_going
from tests.integration.conftest import MakeOperator
from tests.integration.dra import Devices, devices
from tests.integration.nodes import Nodes
from tests.integration.progress_scene import Kube
from tests.integration.running_operator import RunningOperator

pytestmark = pytest.mark.integration

Body = dict[str, Any]


@pytest_asyncio.fixture
async def there(kube: Kube, namespace: str, nodes: Nodes) -> AsyncIterator[Devices]:
    """A node of two GPUs. A test names it first: its pool is there until the operator has ended."""
    async with devices(kube, namespace, nodes, 2, f"{namespace}-1") as made:
        yield made


@dataclass
class Loan:
    """A job that borrows a slot of `chat`, as far as its agent lets it come."""

    scene: ClaimScene
    kube: Kube
    running: RunningOperator
    _sequence: Iterator[int] = field(default_factory=lambda: iter(range(time_ns() // 1_000_000, 2**62)))

    @property
    def slot(self) -> Body:
        """What the engine's status says of the slot that is lent."""
        slots = self.scene.status("inferenceengines", "chat").get("slots", [])
        return next((slot for slot in slots if slot.get("lentTo")), {})

    @property
    def states(self) -> list[str]:
        return [slot["state"] for slot in self.scene.status("inferenceengines", "chat").get("slots", [])]

    async def agent_says(self, pod: str, **told: Any) -> None:
        """The report of a slot's agent, with its pod's own token."""
        body = self.scene.history.now["pods"][pod]
        place, account = body["metadata"], body["spec"]["serviceAccountName"]
        bound = {"apiVersion": "v1", "kind": "Pod", "name": place["name"], "uid": place["uid"]}
        spec = {"audiences": [TOKEN_AUDIENCE], "expirationSeconds": 3600, "boundObjectRef": bound}
        path = f"/api/v1/namespaces/{place['namespace']}/serviceaccounts/{account}/token"
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        token = (await self.kube.call("POST", path, asked))["status"]["token"]
        report = {"sequence": next(self._sequence), "serving": False, "draining": True, "inFlight": 0, **told}
        url = f"http://127.0.0.1:{self.running.progress_port}{ENGINE_REPORTS_PATH}"
        headers = {"Authorization": f"Bearer {token}"}
        async with aiohttp.ClientSession() as session, session.post(url, json=report, headers=headers) as answer:
            assert answer.status == 202, await answer.text()

    async def falls_asleep(self) -> None:
        """The slot has drained, and is told to sleep."""
        assert "goes to sleep" in await self.scene.job_says("tone", "WaitingForSleep")
        await self.scene.history.until(lambda: self.slot.get("state") == "Sleeping", "the slot is told to sleep")

    async def trains(self) -> Body:
        """Its agent says that it sleeps; the trainer's pod is let go, and bound."""
        await self.falls_asleep()
        pod: Body = await self.scene.pod_of("tone")
        assert is_gated(pod)
        await self.agent_says(self.slot["pod"], asleep=True)
        return await self.scene.running("tone")


@pytest_asyncio.fixture
async def loan(there: Devices, scene: ClaimScene, operator: MakeOperator, kube: Kube) -> Loan:
    running = operator()
    await scene.engine("chat", replicas=2, policy="Sleep", pool=there.pool)
    await scene.serves(2)
    await scene.job("tone", pool=there.pool)
    return Loan(scene, kube, running)


async def test_sleeping_slot_keeps_its_pod_and_wakes_after_the_trainer(there: Devices, loan: Loan) -> None:
    scene = loan.scene
    trainer = await loan.trains()
    claim = (await there.claims())[slot_gpus_name("chat", loan.slot["index"])]
    assert {user["name"] for user in claim["status"]["reservedFor"]} == {trainer["metadata"]["name"], loan.slot["pod"]}
    await scene.history.until(lambda: scene.lent() == 1, "the slot is lent")
    assert loan.slot["state"] == "Lent"
    assert [*scene.sizes().values()] == [1, 1]
    assert not [name for name in scene.history.now["pods"] if "placeholder" in name]

    scene.kubelet.ends = lambda _pod: False  # the trainer saves its state
    await scene.patch("finetunejobs", "tone", {"spec": {"suspend": True}})
    name = trainer["metadata"]["name"]
    await scene.history.until(lambda: is_going(scene.history.now["pods"][name]), "the trainer is told to end")
    await scene.job_says("tone", "Suspended")
    await scene.history.never(lambda: loan.slot.get("state") != "Lent", "it woke beside the trainer", 3)

    await scene.kubelet._end(trainer)
    await scene.history.until(lambda: loan.states == ["Serving", "Serving"], "both slots serve")
    annotations = [d["metadata"]["annotations"] for d in scene.history.now["deployments"].values()]
    assert len([found for found in annotations if RESTARTED_AT_ANNOTATION in found]) == 1
    stopped = [v for v in scene.history.ordered("deployments") if not v.body["spec"]["replicas"]]
    assert not stopped


async def test_sleeping_slot_does_not_wake_while_no_operator_runs(
    there: Devices, loan: Loan, operator: MakeOperator
) -> None:
    scene = loan.scene
    trainer = await loan.trains()
    await scene.history.until(lambda: loan.slot.get("state") == "Lent", "the slot is lent")
    loan.running.process.kill()
    await scene.kubelet._end(trainer)
    await scene.history.never(lambda: loan.slot.get("state") != "Lent", "it woke by itself", 2)
    operator("operator-1")
    await scene.history.until(lambda: "Lent" not in loan.states or scene.stage_jobs("tone")[1:], "somebody decides")
