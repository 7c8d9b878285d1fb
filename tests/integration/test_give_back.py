"""Before an uninstall: training ends, and every lent slot comes back, while the operator itself still runs."""

import asyncio
from pathlib import Path

import pytest

from dev.cluster.control_plane import ControlPlane
from tests.integration.claim_scene import ClaimScene, is_going, is_slot
from tests.integration.conftest import MakeOperator
from tests.integration.nodes import Nodes
from tests.integration.running_operator import RunningOperator

pytestmark = pytest.mark.integration


async def test_give_back_ends_training_and_returns_every_slot(
    scene: ClaimScene, nodes: Nodes, namespace: str, operator: MakeOperator, control_plane: ControlPlane, tmp_path: Path
) -> None:
    await nodes.add(f"{namespace}-n1", gpus=2)
    running = operator(lease_seconds=5)
    await scene.engine("chat", replicas=2)
    await scene.serves(2)
    await scene.job("j")
    await scene.running("j")
    await scene.job("k", scaleUpFirst={})
    await scene.history.until(lambda: _ask_for_nodes(scene), "a pod asks for a node")

    hook = await _give_back(control_plane, namespace, tmp_path)
    assert hook.events("every slot is back"), hook.log.read_text()
    assert list(scene.sizes().values()) == [1, 1]
    await scene.history.until(lambda: scene.ready() == 2, "both slots answer again")
    assert not scene.stage_jobs("j")
    assert (_placeholders(scene), _ask_for_nodes(scene)) == ([], [])
    assert running.events("no longer leading") or running.events("stepping down")
    assert running.process.poll() is None


async def test_give_back_does_not_wait_for_a_replica_that_never_stops(
    scene: ClaimScene, nodes: Nodes, namespace: str, operator: MakeOperator, control_plane: ControlPlane, tmp_path: Path
) -> None:
    """The slot's pod is going for ever, on a node that is lost, say: the GPUs stay taken, and no pod of ours waits."""
    await nodes.add(f"{namespace}-n1", gpus=2)
    operator(lease_seconds=5)
    await scene.engine("chat", replicas=2)
    await scene.serves(2)
    scene.kubelet.ends = lambda pod: not is_slot(pod, "chat")
    await scene.job("j")
    await scene.history.until(lambda: any(map(is_going, scene.history.now["pods"].values())), "a slot is to stop")

    hook = await _give_back(control_plane, namespace, tmp_path, give_back_seconds=5)
    assert hook.events("gave up: not everything is back"), hook.log.read_text()
    assert list(scene.sizes().values()) == [1, 1]
    assert not scene.stage_jobs("j")
    await scene.history.until(lambda: not _placeholders(scene), "no placeholder is left")


async def _give_back(plane: ControlPlane, namespace: str, folder: Path, **settings: object) -> RunningOperator:
    """The hook, once it has ended."""
    options = {"lease_seconds": 5, **settings}
    hook = RunningOperator.start(folder, "give-back", plane.kubeconfig, namespace, options, "give-back")
    try:
        assert await asyncio.to_thread(hook.process.wait, 100) == 0
    finally:
        hook.kill()
    return hook


def _ask_for_nodes(scene: ClaimScene) -> list[str]:
    return [name for name in scene.history.now["pods"] if "-scale-up-" in name]


def _placeholders(scene: ClaimScene) -> list[str]:
    return [name for name in scene.history.now["pods"] if name.endswith("-placeholder")]
