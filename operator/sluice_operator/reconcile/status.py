"""Write a status only when it differs from the one that is there."""

from sluice_api.finetunejob import FineTuneJob
from sluice_operator.observe.world import Custom, key_of
from sluice_operator.status.aside import Status as NewStatus
from sluice_operator.writes import Status


def status_writes(owner: Custom, status: NewStatus) -> tuple[Status, ...]:
    """The write of a status; none if nothing changes. It leaves out a job's progress, which another manager owns."""
    if status == owner.status:
        return ()
    others = {"progress"} if isinstance(owner, FineTuneJob) else None
    new = status.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=others)
    old = owner.status.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=others)
    return (Status(key_of(owner), owner.metadata.uid, new),) if new != old else ()
