"""How the pod of an attempt ended: in the trainer's own words, or else in those of the kubelet and of Kubernetes."""

from typing import NamedTuple

from pydantic import ValidationError

from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode, StageOutcome
from sluice_operator.observe.views import Key, PodView, StageJobView, Termination
from sluice_operator.observe.world import World

_BY_EXIT_CODE = "PodFailurePolicy:"
"""How a Job has failed whose pod ended with ExitCode.REQUEUE: its only rule. Of a group it does not say which pod."""
BY_DEADLINE = "DeadlineExceeded:"
"""How a Job has failed whose own activeDeadlineSeconds are over. Its pods were told to stop, and say that."""
_OUT_OF_MEMORY = "OOMKilled"
_SIGNALS = {137: "SIGKILL", 143: "SIGTERM"}
"""Exit codes of a process that a signal ended."""


class End(NamedTuple):
    """How one pod of an attempt ended."""

    reason: str
    message: str
    node: str
    told: StageOutcome | None
    """The trainer's own words, if it left any."""


def pod_end(world: World, stage_job: StageJobView, pod: PodView | None, node: str) -> End:
    """How the pod of a finished Job ended.

    Args:
        pod: None if it is gone.
        node: where its claim puts it.
    """
    place = pod.node if pod and pod.node else node
    told = _told(pod.termination if pod else None)
    if told is not None:
        return End(told.reason, told.message, place, told)
    return End(*_why(world, stage_job, pod, place), place, None)


def how_grave(end: End) -> int:
    """Of several pods' ends, which was the cause: one that fails, or is lost with its node, takes all others along.

    A pod that ended by itself stays, and those that it takes along are deleted: if no operator ran meanwhile, nobody
    saw how they ended. A pod that says it misses another was not the first.
    """
    if end.reason == Reason.NODE_LOST:
        return 1
    if end.reason in (Reason.REQUEUED, Reason.STALLED):
        return 2
    if end.reason != Reason.POD_LOST:
        return 0
    return 4 if end.told else 3


def _told(termination: Termination | None) -> StageOutcome | None:
    if termination is None or not termination.message:
        return None
    try:
        return StageOutcome.model_validate_json(termination.message)
    except ValidationError:
        return None


def _why(world: World, stage_job: StageJobView, pod: PodView | None, node: str) -> tuple[Reason, str]:
    """Why a pod ended that left no words of its own. Memory is the reason only if the kernel says so."""
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
    """Why a pod is gone that nobody saw end."""
    if stage_job.failure.startswith(_BY_EXIT_CODE) and len(stage_job.claim.nodes if stage_job.claim else ()) <= 1:
        return Reason.REQUEUED, "The trainer was told to stop while no operator looked."
    if node and Key("Node", "", node) not in world.nodes:
        return Reason.NODE_LOST, f"Node {node} is gone."
    return Reason.POD_LOST, stage_job.failure or "The pod is gone without a word."


def _taken_away(world: World, pod: PodView, node: str) -> tuple[Reason, str] | None:
    """Why Kubernetes took a pod away or did not let it begin; None if it did neither.

    What a pod brings about itself, by more disk than its limit, say, is no disruption: it counts as an attempt.
    """
    name = pod.key.name
    if pod.disruption and Key("Node", "", node) in world.nodes:
        return Reason.EVICTED, f"Pod {name} was evicted from node {node}: {pod.failure or pod.disruption}"
    if not pod.failure:
        return None
    if pod.started:
        return Reason.POD_LOST, f"The kubelet of node {node} ended pod {name}: {pod.failure}"
    return Reason.POD_REFUSED, f"The kubelet of node {node} refused pod {name}: {pod.failure}"
