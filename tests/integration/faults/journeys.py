"""What users and pods do, as scripts: whatever becomes of the operator meanwhile, each must come to the same end."""

from collections.abc import Awaitable, Callable

from sluice_api.stages import Stage
from tests.integration.claim_scene import REQUEUED, ClaimScene
from tests.integration.nodes import Nodes, finish_pod, lose_pod

Journey = Callable[[ClaimScene, Nodes], Awaitable[None]]


async def lend_train_publish(scene: ClaimScene, nodes: Nodes) -> None:
    """J1: an engine of two slots lends one; the job prepares, trains, gives back, exports, publishes."""
    await nodes.add(f"{scene.namespace}-n1", gpus=2)
    await scene.engine("chat", replicas=2)
    await scene.serves(2)
    await scene.job("tone", publish="chat", prepared=False)
    await scene.finishes("tone", Stage.PREPARE)
    await scene.running("tone")
    await _lends(scene, 1)
    await scene.finishes("tone")
    await scene.serves(2)
    await scene.finishes("tone", Stage.EXPORT)
    await scene.history.until(lambda: scene.history.now["adapters"].get("tone"), "the Adapter is written")


async def lose_the_trainer(scene: ClaimScene, nodes: Nodes) -> None:
    """J3: the trainer's pod is lost in the middle, without a last word; the second attempt trains to the end."""
    await nodes.add(f"{scene.namespace}-n1", gpus=2)
    await scene.engine("chat", replicas=2)
    await scene.serves(2)
    await scene.job("tone")
    await scene.running("tone")
    await _lends(scene, 1)
    await lose_pod(scene.kube, await scene.running("tone"))
    await scene.finishes("tone", attempt=2)
    await scene.serves(2)
    await scene.finishes("tone", Stage.EXPORT)
    await scene.succeeds("tone")


async def lose_one_of_a_group(scene: ClaimScene, nodes: Nodes) -> None:
    """A job on two nodes borrows on both; one of its pods has to go, and all of them begin again."""
    for number in (1, 2):
        await nodes.add(f"{scene.namespace}-n{number}", gpus=1)
    await scene.engine("chat", replicas=2, floor=0)
    await scene.serves(2)
    await scene.job("tone", nodes=2)
    for index in (0, 1):
        await scene.running("tone", index=index)
    await _lends(scene, 2)
    await finish_pod(scene.kube, await scene.running("tone", index=1), 75, REQUEUED.to_json())
    for index in (0, 1):
        await scene.running("tone", attempt=2, index=index)
    await scene.finishes("tone", attempt=2)
    await scene.serves(2)
    await scene.finishes("tone", Stage.EXPORT)
    await scene.succeeds("tone")


JOURNEYS: dict[str, Journey] = {"j1": lend_train_publish, "j3": lose_the_trainer, "group": lose_one_of_a_group}


async def _lends(scene: ClaimScene, slots: int) -> None:
    await scene.history.until(lambda: scene.lent() == slots, f"{slots} slots are lent")
