"""Leading, losing, and coming back: no training is stopped for a silence in which nobody could hear it.

Limits are short here, so that minutes are seconds: a training is stalled after 4 s, and stopped after 6.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import pytest
import pytest_asyncio

from dev.faults.proxy import FaultProxy
from dev.faults.rules import Away
from tests.integration.claim_scene import ClaimScene
from tests.integration.conftest import MakeOperator
from tests.integration.nodes import Nodes
from tests.integration.posting import Posting
from tests.integration.running_operator import RunningOperator

pytestmark = pytest.mark.integration

LEASE_SECONDS = 3
STALLED_AFTER = 4
STOPPED_AFTER = STALLED_AFTER * 1.5
LONGER = STOPPED_AFTER + 3
"""A silence for which a training that could have been heard would have been stopped."""


@dataclass
class Stage:
    """A training that goes on and reports, and the operators that lead it."""

    scene: ClaimScene
    make: MakeOperator
    proxy: FaultProxy
    operators: list[RunningOperator] = field(default_factory=list)

    def operator(self, **settings: object) -> RunningOperator:
        """One more, behind the proxy."""
        limits = {"lease_seconds": LEASE_SECONDS, "stalled_after_seconds": STALLED_AFTER, **settings}
        made = self.make(f"operator-{len(self.operators)}", self.proxy.kubeconfig, **limits)
        self.operators.append(made)
        return made

    @asynccontextmanager
    async def training(self) -> AsyncIterator[Posting]:
        """It runs and is heard."""
        await self.scene.job("tone", policy="Queue")
        async with Posting.of(self.scene.kube, await self.scene.running("tone"), self.operators) as posting:
            await posting.heard()
            yield posting

    async def goes_on(self, posting: Posting) -> None:
        """Whoever leads now hears it for longer than it would have taken to stop it, and nobody ever meant to."""
        await posting.heard()
        await self.scene.history.never(self.was_stopped, "the training is stopped", STALLED_AFTER / 2)
        step = posting.step
        await self.scene.history.until(lambda: self.progress() > step, "its progress is written")
        assert not self.was_stopped()

    def progress(self) -> int:
        return int(self.scene.status("finetunejobs", "tone").get("progress", {}).get("step", 0))

    def was_stopped(self) -> list[str]:
        """Jobs that somebody has ever begun to delete."""
        return [v.name for v in self.scene.history.ordered("jobs") if "deletionTimestamp" in v.body["metadata"]]


@pytest_asyncio.fixture
async def stage(scene: ClaimScene, nodes: Nodes, operator: MakeOperator, proxy: FaultProxy) -> Stage:
    """A node with a GPU."""
    await nodes.add(f"{scene.namespace}-n1", gpus=1)
    return Stage(scene, operator, proxy)


async def answers(operator: RunningOperator, probe: str) -> int:
    """What a kubelet's probe is answered."""
    async with aiohttp.ClientSession() as session, session.get(f"{address(operator)}/{probe}") as answer:
        return answer.status


def address(operator: RunningOperator) -> str:
    return f"http://127.0.0.1:{operator.metrics_port}"


async def until_probed(operator: RunningOperator, probe: str, status: int, within: float = 40) -> None:
    """A kubelet asks again and again, too."""
    async with asyncio.timeout(within):
        while await answers(operator, probe) != status:  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def test_training_continues_when_a_former_leader_leads_again(stage: Stage) -> None:
    first = stage.operator()
    await first.leads()
    async with stage.training() as posting:
        second = stage.operator()
        await second.logged("standing by: another leads")
        first.pause()
        await second.leads()
        await asyncio.sleep(LONGER)  # while the other leads and hears
        await posting.heard()
        second.kill()
        first.wake()
        await first.logged("leading", times=2)
        await stage.goes_on(posting)


async def test_training_continues_after_an_api_server_outage(stage: Stage) -> None:
    """It is away for longer than a training may be silent, as four minutes would be."""
    leader = stage.operator()
    await leader.leads()
    async with stage.training() as posting:
        away = Away()
        stage.proxy.rules.append(away)
        await leader.logged("no longer leading")
        await asyncio.sleep(LONGER)
        posting.pauses = True
        stage.proxy.rules.remove(away)
        await leader.logged("leading", times=2)
        await asyncio.sleep(STALLED_AFTER / 2)  # it is looked at before it has spoken
        posting.pauses = False
        await stage.goes_on(posting)


async def test_operator_is_restarted_after_unreachable_seconds(stage: Stage) -> None:
    """As ten minutes would be. Before, it does not call itself ready; the training goes on under its successor."""
    leader = stage.operator(unreachable_seconds=10)
    await leader.leads()
    async with stage.training() as posting:
        await until_probed(leader, "readyz", 200)
        away = Away()
        stage.proxy.rules.append(away)
        await until_probed(leader, "readyz", 503)
        assert await answers(leader, "livez") == 200
        await until_probed(leader, "livez", 503)
        leader.kill()  # as the kubelet does then
        stage.proxy.rules.remove(away)
        successor = stage.operator(unreachable_seconds=10)
        await successor.leads()
        await until_probed(successor, "readyz", 200)
        await stage.goes_on(posting)
