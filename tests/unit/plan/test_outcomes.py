"""How a pod ended that left no words of its own, and which nodes its job leaves out then."""

from datetime import timedelta
from typing import Any

import pytest

from sluice_api.claim import AttemptOutcome
from sluice_api.reasons import Reason
from sluice_api.stages import Stage, StageOutcome
from sluice_operator.facts.nodes import find_pool
from sluice_operator.observe.views import Termination
from sluice_operator.observe.world import job_key
from sluice_operator.plan.job.decide import plan_job
from sluice_operator.settings import Limits
from sluice_operator.status.trace import trace
from tests.unit.plan.worlds import NOW, PREPARED, WorldBuilder, allocated, describe

NO_GPU = "UnexpectedAdmissionError: Allocate failed due to no healthy devices present"
NO_DISK = "TerminationByKubelet: The node was low on resource: ephemeral-storage."


def killed(code: int, reason: str = "Error") -> dict[str, Any]:
    return {"termination": Termination(code, reason, "", NOW), "started": True}


def ended(builder: WorldBuilder, *outcomes: AttemptOutcome, **pod: Any) -> AttemptOutcome:
    """What is recorded of a training pod on n1 that ended so."""
    job = builder.job("a", outcomes=(PREPARED, *outcomes))
    attempt = len(outcomes) + 1
    made = builder.stage_job(job, attempt=attempt, claim=builder.claim("n1"), finished="Failed", finished_at=NOW)
    builder.trainer_pod(made, "n1", ended=True, running=False, **pod)
    decision = plan_job(builder.world, builder.world.jobs[job_key("team", "a")], NOW, Limits())
    assert decision.record is not None
    return decision.record.of(Stage.TRAIN)[-1]


@pytest.mark.parametrize(
    ("rule", "pod", "reason", "words"),
    [
        ("the kernel says that memory ran out", killed(137, "OOMKilled"), Reason.OUT_OF_MEMORY, "resources.memory"),
        ("nobody says so: any other kill", killed(137), Reason.POD_LOST, "killed by SIGKILL, and not by the kernel"),
        ("before it listens to SIGTERM", killed(143), Reason.POD_LOST, "SIGTERM"),
        ("its grace period was over", {**killed(137), "deleting": True}, Reason.POD_LOST, "its grace period was over"),
        ("the node lacks disk", {**killed(137), "disruption": NO_DISK}, Reason.EVICTED, "low on resource"),
        ("the kubelet's words are the better ones",
         {**killed(137), "disruption": NO_DISK, "failure": "Evicted: Container trainer was using 9Gi"},
         Reason.EVICTED, "Container trainer was using 9Gi"),
        ("evicted, with time to save", {**killed(75), "disruption": NO_DISK}, Reason.REQUEUED, "told to stop"),
        ("the kubelet finds no GPU", {"failure": NO_GPU}, Reason.POD_REFUSED, "no healthy devices present"),
        ("any other refusal of a kubelet", {"failure": "OutOfcpu: Node didn't have enough"}, Reason.POD_REFUSED, "n1"),
        ("more disk than its own limit is no disruption",
         {**killed(137), "failure": "Evicted: Pod ephemeral local storage usage exceeds the total limit"},
         Reason.POD_LOST, "exceeds the total limit"),
        ("a crash", killed(1), Reason.TRAINER_FAILED, "Exit code 1"),
        ("nothing is known", {}, Reason.POD_LOST, "without a word"),
    ],
)  # fmt: skip
def test_outcome_follows_from_how_the_pod_ended(rule: str, pod: dict[str, Any], reason: Reason, words: str) -> None:
    builder = WorldBuilder()
    builder.node(1)
    outcome = ended(builder, **pod)
    assert (outcome.reason, outcome.node) == (reason, "n1"), rule
    assert words in outcome.message, outcome.message


def test_pod_collected_with_its_node_is_node_lost() -> None:
    builder = WorldBuilder()
    assert ended(builder, disruption="DeletionByPodGC: PodGC: node no longer exists").reason == Reason.NODE_LOST


def attempt(number: int, reason: Reason, ago: timedelta = timedelta(minutes=1)) -> AttemptOutcome:
    at = NOW - ago
    return AttemptOutcome(
        stage=Stage.TRAIN, attempt=number, reason=reason, node="n1", started_at=at - timedelta(minutes=1), ended_at=at
    )


def test_second_gpu_failed_says_to_cordon_the_node() -> None:
    told = StageOutcome(reason=Reason.GPU_FAILED, message="uncorrectable ECC error").to_json()
    end = {"termination": Termination(70, "Error", told, NOW), "started": True}
    first, second = WorldBuilder(), WorldBuilder()
    first.node(1)
    second.node(1)
    assert ended(first, **end).message == "uncorrectable ECC error"
    again = ended(second, attempt(1, Reason.GPU_FAILED), **end)
    assert "2 attempts have ended so on node n1" in again.message
    assert "kubectl cordon n1" in again.message


@pytest.mark.parametrize(
    ("rule", "gpus", "reason", "ago", "expected"),
    [
        ("another node is taken after PodRefused", [1, 1], Reason.POD_REFUSED, 1, "a takes n2"),
        ("the only node is avoided after PodRefused", [1], Reason.POD_REFUSED, 1, "a waits NodeAvoided"),
        ("PodRefused lets a node be avoided for a while only", [1], Reason.POD_REFUSED, 6, "a takes n1"),
        ("another node is taken after GPUFailed", [1, 1], Reason.GPU_FAILED, 50, "a takes n2"),
        ("GPUFailed lets a node be avoided for an hour only", [1, 1], Reason.GPU_FAILED, 61, "a takes n1"),
        ("the only node is not avoided after GPUFailed", [1], Reason.GPU_FAILED, 50, "a takes n1"),
        ("a node that is too small is no other node", [2, 1], Reason.GPU_FAILED, 50, "a takes n1"),
        ("another node is taken after Evicted", [1, 1], Reason.EVICTED, 1, "a takes n2"),
        ("the only node is not avoided after Evicted", [1], Reason.EVICTED, 1, "a takes n1"),
        ("a crash lets no node be avoided", [1, 1], Reason.TRAINER_FAILED, 6, "a takes n1"),
    ],
)
def test_node_avoided_depends_on_the_last_outcome(
    rule: str, gpus: list[int], reason: Reason, ago: int, expected: str
) -> None:
    builder = WorldBuilder()
    for count in gpus:
        builder.node(count)
    builder.job("a", gpus[0], outcomes=(PREPARED, attempt(1, reason, timedelta(minutes=ago))))
    assert describe(allocated(builder)) == expected, rule


def test_node_avoided_says_until_when_and_the_pool_looks_again() -> None:
    """X2: after NotBound on the only node it said that the engine was at its floor."""
    builder = WorldBuilder()
    builder.node(2)
    engine = builder.engine("chat", 2, preemption={"policy": "ScaleDown", "minReplicas": 1})
    for index in (0, 1):
        builder.slot(engine, index, "n1")
    job = builder.job("a", outcomes=(PREPARED, attempt(1, Reason.NOT_BOUND)))
    (wait,) = allocated(builder).waits.values()
    assert wait.reason is Reason.NODE_AVOIDED
    assert "n1 is left out until 12:04:00 UTC, as the last pod was not bound there" in wait.message
    pool = find_pool(builder.world, "default")
    assert pool is not None
    assert allocated(builder).again_at == NOW + timedelta(minutes=4)
    assert any(
        "n1 is left out until 12:04:00 UTC" in line
        for line in trace(builder.world, job, NOW, Limits())
        if "free" in line
    )
    builder.node(2)
    builder.stranger("n2", 2)
    (wait,) = allocated(builder).waits.values()
    assert wait.reason is Reason.NODE_AVOIDED, "that is over by itself"
    assert "n1 is left out until 12:04:00 UTC" in wait.message
