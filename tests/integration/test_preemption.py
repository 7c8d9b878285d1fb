"""Training gives way to a job of higher priority, or to the engine that lent the GPU, and goes on afterwards."""

import pytest

from sluice_api.stages import Stage
from tests.integration.claim_scene import ClaimScene
from tests.integration.conftest import MakeOperator
from tests.integration.nodes import MERGE_PATCH, Nodes

pytestmark = pytest.mark.integration

YIELDS = {"policy": "ToHigherPriority", "minRunSeconds": 0}


async def test_job_of_higher_priority_preempts_training_that_resumes_later(
    scene: ClaimScene, nodes: Nodes, namespace: str, operator: MakeOperator
) -> None:
    await nodes.add(f"{namespace}-n1", gpus=2)
    operator()
    await scene.engine("chat", replicas=2)
    await scene.serves(2)
    await scene.job("low", interruption=YIELDS)
    await scene.running("low")
    await scene.job("high", priority=5)
    await scene.running("high")
    message = await scene.job_says("low", "EngineAtFloor")
    assert "high ends and gives back what it holds" in message
    (interruption,) = scene.status("finetunejobs", "low")["interruptions"]
    assert (interruption["by"], interruption["reason"], interruption["attempt"]) == (
        f"{namespace}/high",
        "Preempted",
        1,
    )

    await scene.finishes("high")
    await scene.running("low", attempt=2)
    assert _lent(scene) == [0, 1], "the replica was lent on, twice, without a start in between"
    await scene.finishes("low", attempt=2)
    for job in ("high", "low"):
        await scene.finishes(job, Stage.EXPORT)
        await scene.succeeds(job)
    await scene.serves(2)


async def test_job_that_cannot_run_preempts_nothing(
    scene: ClaimScene, nodes: Nodes, namespace: str, operator: MakeOperator
) -> None:
    await nodes.add(f"{namespace}-n1", gpus=1)
    operator()
    await scene.job("low", policy="Queue", interruption=YIELDS)
    await scene.running("low")
    quota = {"metadata": {"name": "one-pod"}, "spec": {"hard": {"requests.nvidia.com/gpu": "1"}}}
    place = f"/api/v1/namespaces/{namespace}/resourcequotas"
    await scene.kube.call("POST", place, quota)

    async def counted() -> bool:
        return bool((await scene.kube.call("GET", f"{place}/one-pod")).get("status", {}).get("used"))

    while not await counted():
        pass
    await scene.job("high", policy="Queue", priority=5)
    assert "nothing is drained" in await scene.job_says("high", "QuotaExceeded")
    await scene.history.never(lambda: scene.waits_for("low")[0] == "Preempted", "low was interrupted", 2)


async def test_raised_replicas_reclaim_a_loan_and_lowered_ones_lend_again(
    scene: ClaimScene, nodes: Nodes, namespace: str, operator: MakeOperator
) -> None:
    await nodes.add(f"{namespace}-n1", gpus=2)
    operator()
    await scene.engine("chat", replicas=2, reclaim="OnDemand")
    await scene.serves(2)
    await scene.job("tone")
    await scene.running("tone")
    await scene.scale("chat", 3)
    await scene.serves(2)
    assert "chat should have replicas that it finds no GPU for" in await scene.job_says("tone", "EngineInDemand")
    (interruption,) = scene.status("finetunejobs", "tone")["interruptions"]
    assert (interruption["by"], interruption["reason"]) == (f"{namespace}/chat", "Reclaimed")

    await scene.scale("chat", 2)
    await scene.running("tone", attempt=2)


async def test_a_disruption_budget_bounds_what_is_lent(
    scene: ClaimScene, nodes: Nodes, namespace: str, operator: MakeOperator
) -> None:
    await nodes.add(f"{namespace}-n1", gpus=2)
    operator()
    await scene.engine("chat", replicas=2)
    await scene.serves(2)
    place = f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets"
    spec = {"minAvailable": 2, "selector": {"matchLabels": {"sluice.dev/engine": "chat"}}}
    await scene.kube.call("POST", place, {"metadata": {"name": "both"}, "spec": spec})
    await scene.job("tone")
    assert "PodDisruptionBudget" in await scene.job_says("tone", "EngineProtected")
    assert scene.ready() == 2
    await scene.kube.call("PATCH", f"{place}/both", {"spec": {"minAvailable": 1}}, MERGE_PATCH)
    await scene.running("tone")


def _lent(scene: ClaimScene) -> list[int]:
    """How many replicas the engine's status has said are lent, each change once."""
    found: list[int] = []
    for version in scene.history.ordered("inferenceengines"):
        lent = int(version.body.get("status", {}).get("lent", 0))
        if found[-1:] != [lent]:
            found.append(lent)
    return found
