"""How did one pod of an attempt end, in the trainer's own words or else in those of the kubelet and of Kubernetes?"""

from typing import NamedTuple

from pydantic import ValidationError

from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode, StageOutcome
from sluice_operator.observe.views import Key, PodView, StageJobView, Termination
from sluice_operator.observe.world import World

_BY_EXIT_CODE = "PodFailurePolicy:"
"""A failed Job's message begins so if a pod exited with ExitCode.REQUEUE: its podFailurePolicy has no other rule. The
message does not say which pod of a group."""


_OUT_OF_MEMORY = "OOMKilled"


_SIGNALS = {137: "SIGKILL", 143: "SIGTERM"}
"""Exit codes of a process that was ended by a signal."""


class End(NamedTuple):
    """How one pod of an attempt ended."""

    reason: str
    message: str
    node: str
    stage_outcome: StageOutcome | None
    """What the trainer wrote on its way out; None if it wrote nothing that can be read."""


def pod_end(world: World, stage_job: StageJobView, pod: PodView | None, node: str) -> End:
    """How one pod of a finished Job ended.

    Args:
        pod: None if the pod is gone.
        node: the node that the claim gives the pod; empty without a claim. The pod's own node comes before it.
    """
    place = pod.node if pod and pod.node else node
    stage_outcome = _stage_outcome(pod.termination if pod else None)
    if stage_outcome is not None:
        return End(stage_outcome.reason, stage_outcome.message, place, stage_outcome)
    return End(*_why(world, stage_job, pod, place), place, None)


def cause_order(end: End) -> int:
    """Sort key for the ends of one attempt's pods: the least is the cause of the others.

    A pod that fails, or is lost with its node, takes all others along. It stays, and the others are deleted. If no
    operator ran meanwhile, it is not known how those ended, so a lost pod is rarely the cause. A pod that reports
    another one missing was not the first, and comes last.
    """
    if end.reason == Reason.NODE_LOST:
        return 1
    if end.reason in (Reason.REQUEUED, Reason.STALLED):
        return 2
    if end.reason != Reason.POD_LOST:
        return 0
    return 4 if end.stage_outcome else 3


def _stage_outcome(termination: Termination | None) -> StageOutcome | None:
    if termination is None or not termination.message:
        return None
    try:
        return StageOutcome.model_validate_json(termination.message)
    except ValidationError:
        return None


def _why(world: World, stage_job: StageJobView, pod: PodView | None, node: str) -> tuple[Reason, str]:
    """Reason and message for a pod that left no words of its own. Memory is the reason only if the kernel says so."""
    if stage_job.finished == "Complete":
        return Reason.POD_LOST, "The pod ended well, but is gone with its result; the stage runs again."
    termination = pod.termination if pod else None
    if termination and termination.reason == _OUT_OF_MEMORY:
        return Reason.OUT_OF_MEMORY, "The pod used more than resources.memory and was killed."
    if termination and termination.exit_code == ExitCode.REQUEUE:
        return Reason.REQUEUED, "The trainer was told to stop."
    if pod and (taken := _taken_away(world, pod, node)):
        return taken
    if termination is None:
        return _gone(world, stage_job, node)
    if signal := _SIGNALS.get(termination.exit_code):
        late = ": it had not ended by itself when its grace period was over" if pod and pod.deleting else ""
        return Reason.POD_LOST, f"The trainer was killed by {signal}{late}, and not by the kernel for want of memory."
    last_words = termination.message.strip() or termination.reason
    return Reason.TRAINER_FAILED, f"Exit code {termination.exit_code}. {last_words}"


def _gone(world: World, stage_job: StageJobView, node: str) -> tuple[Reason, str]:
    """Reason and message for a pod that is gone, or has ended without an exit code."""
    # In a group it could be any pod that asked for the requeue.
    if stage_job.failure.startswith(_BY_EXIT_CODE) and len(stage_job.claim.nodes if stage_job.claim else ()) <= 1:
        return Reason.REQUEUED, "The trainer was told to stop while no operator looked."
    if node and Key("Node", "", node) not in world.nodes:
        return Reason.NODE_LOST, f"Node {node} is gone."
    return Reason.POD_LOST, stage_job.failure or "The pod is gone without a word."


def _taken_away(world: World, pod: PodView, node: str) -> tuple[Reason, str] | None:
    """Reason and message if Kubernetes took a pod away or did not let it begin; None if it did neither.

    An end that the pod caused itself, by using more disk than its limit for example, is no disruption. It counts as an
    attempt.
    """
    name = pod.key.name
    if pod.disruption and Key("Node", "", node) in world.nodes:
        return Reason.EVICTED, f"Pod {name} was evicted from node {node}: {pod.failure or pod.disruption}"
    if not pod.failure:
        return None
    if pod.started:
        return Reason.POD_LOST, f"The kubelet of node {node} ended pod {name}: {pod.failure}"
    return Reason.POD_REFUSED, f"The kubelet of node {node} refused pod {name}: {pod.failure}"
