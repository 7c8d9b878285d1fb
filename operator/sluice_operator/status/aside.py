"""The status of an object that is set aside: it says so, and everything else in it stays."""

from datetime import datetime, timedelta

from sluice_api.adapter import AdapterStatus
from sluice_api.conditions import READY, Condition, ConditionStatus, JobCondition, condition
from sluice_api.finetunejob import FineTuneJob, FineTuneJobStatus
from sluice_api.gpupool import GPUPoolStatus
from sluice_api.inferenceengine import InferenceEngineStatus
from sluice_api.reasons import Reason
from sluice_operator.observe.world import Custom, SetAside

LOOKED_AT_AGAIN = timedelta(minutes=5)
"""How long an object that does not change stays aside: the exception may have been another object's fault."""

Status = FineTuneJobStatus | InferenceEngineStatus | AdapterStatus | GPUPoolStatus


def set_aside_status(resource: Custom, found: SetAside, now: datetime) -> Status:
    """The status of an object while it is set aside."""
    message = (
        f"{found.why}. Sluice leaves this {resource.KIND.kind} alone, decides for all others, and looks at it again in "
        f"{LOOKED_AT_AGAIN.seconds // 60} min or when it changes. Correct what is out of the ordinary in its spec or "
        "annotations, or create it again; the operator's log has the traceback."
    )
    fresh: dict[str, Condition] = {
        kind: _condition(resource, kind, status, message, now) for kind, status in _concerned(resource).items()
    }
    kept: tuple[Condition, ...] = tuple(fresh.pop(old.type, old) for old in resource.status.conditions)
    changes: dict[str, object] = {"conditions": (*kept, *fresh.values())}
    if isinstance(resource, FineTuneJob):
        changes["summary"] = Reason.INTERNAL_ERROR
    return resource.status.model_copy(update=changes)


def is_shown(resource: Custom) -> bool:
    """Whether an object's status says already that the object is set aside."""
    return any(known.reason == Reason.INTERNAL_ERROR for known in resource.status.conditions)


def _concerned(resource: Custom) -> dict[str, ConditionStatus]:
    """The conditions that say it: for a job its first step that is not done, and its end; otherwise Ready."""
    if not isinstance(resource, FineTuneJob):
        return {READY: "Unknown"}
    done = {known.type for known in resource.status.conditions if known.status == "True"}
    at = next((kind for kind in JobCondition if kind not in done), JobCondition.SUCCEEDED)
    return {at: "False", JobCondition.SUCCEEDED: "Unknown"}


def _condition(
    resource: Custom,
    kind: str,
    status: ConditionStatus,
    message: str,
    now: datetime,
) -> Condition:
    generation = resource.metadata.generation
    return condition(resource.status.conditions, kind, status, Reason.INTERNAL_ERROR, message, generation, now)
