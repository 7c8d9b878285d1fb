"""An autoscaler that writes the scale subresource while a slot is lent: it knows replicas, and nothing of loans."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from dev.cluster.control_plane import ControlPlane
from tests.integration.claim_scene import ClaimScene, borrowed_slots, claim_scene
from tests.integration.conftest import MakeOperator
from tests.integration.nodes import Nodes
from tests.integration.progress_scene import Kube

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def scene(
    control_plane: ControlPlane, kube: Kube, namespace: str, nodes: Nodes, operator: MakeOperator
) -> AsyncIterator[ClaimScene]:
    """An engine of two slots on a node of three GPUs, of which a job that asks for two borrows one."""
    async with claim_scene(control_plane, kube, namespace) as made:
        await nodes.add(f"{namespace}-n1", gpus=3)
        operator()
        await made.engine("chat", replicas=2)
        await made.serves(2)
        await made.job("tone", gpus=2)
        await made.running("tone")
        await settles(made, replicas=2, ready=1, lent=1)
        yield made


async def settles(scene: ClaimScene, *, replicas: int, ready: int, lent: int) -> None:
    """Wait until the engine's status and its scale subresource say so."""

    def so() -> bool:
        status = scene.status("inferenceengines", "chat")
        shown = (status.get("ready"), status.get("lent"))
        return shown == (f"{ready}/{replicas}", lent) and status.get("replicas") == ready == scene.ready()

    await scene.history.until(so, f"{ready} of {replicas} slots serve and {lent} is lent")
    scale = await scene.kube.call("GET", f"{scene.path('inferenceengines', 'chat')}/scale")
    shown = [part.get("replicas", 0) for part in (scale["spec"], scale["status"])]  # Go leaves a zero out
    assert shown == [replicas, ready]


def asked_for(scene: ClaimScene) -> list[int]:
    """Every number of replicas that the engine's spec ever had."""
    found: list[int] = []
    for version in scene.history.ordered("inferenceengines"):
        replicas = version.body["spec"]["replicas"]
        if found[-1:] != [replicas]:
            found.append(replicas)
    return found


async def test_replicas_written_by_an_autoscaler_during_a_loan_are_kept(scene: ClaimScene) -> None:
    """2, 3, 1, 2 with one slot lent: up waits for GPUs, down takes what is not lent last, and the loan stays."""
    (lent_slot,) = borrowed_slots(scene.stage_jobs("tone"))
    await scene.scale("chat", 3)
    await settles(scene, replicas=3, ready=1, lent=1)
    assert scene.sizes()[lent_slot] == 0

    await scene.scale("chat", 1)
    await settles(scene, replicas=1, ready=1, lent=1)
    assert scene.ready() == 1, "the slot that serves was stopped instead of the lent one"

    await scene.scale("chat", 2)
    await settles(scene, replicas=2, ready=1, lent=1)
    await scene.finishes("tone")
    await settles(scene, replicas=2, ready=2, lent=0)
    assert asked_for(scene) == [2, 3, 1, 2]


async def test_replicas_lowered_during_a_loan_stay_lowered_after_it(scene: ClaimScene) -> None:
    await scene.scale("chat", 1)
    await settles(scene, replicas=1, ready=1, lent=1)
    await scene.finishes("tone")
    await settles(scene, replicas=1, ready=1, lent=0)
    await scene.history.until(lambda: len(scene.sizes()) == 1, "one slot is left")


async def test_replicas_raised_during_a_loan_get_the_returned_gpus(scene: ClaimScene) -> None:
    await scene.scale("chat", 3)
    await settles(scene, replicas=3, ready=1, lent=1)
    await scene.finishes("tone")
    await settles(scene, replicas=3, ready=3, lent=0)


async def test_autoscaler_does_not_spiral_down_during_a_loan(scene: ClaimScene) -> None:
    """As HPA does: desired = ceil(replicas that it sees x load / target), with the same load all the while."""
    load, target = 2.0, 1.0
    for _ in range(5):
        scale = await scene.kube.call("GET", f"{scene.path('inferenceengines', 'chat')}/scale")
        seen = scale["status"]["replicas"]
        desired = round(seen * (load / seen) / target)
        await scene.scale("chat", desired)
        await settles(scene, replicas=2, ready=1, lent=1)
    await scene.finishes("tone")
    await settles(scene, replicas=2, ready=2, lent=0)


async def test_scale_to_zero_during_a_loan_and_back(scene: ClaimScene) -> None:
    """A floor above spec.replicas is clamped, not refused; the loan goes on."""
    await scene.scale("chat", 0)
    await settles(scene, replicas=0, ready=0, lent=1)
    await scene.scale("chat", 2)
    await settles(scene, replicas=2, ready=1, lent=1)
    await scene.finishes("tone")
    await settles(scene, replicas=2, ready=2, lent=0)
