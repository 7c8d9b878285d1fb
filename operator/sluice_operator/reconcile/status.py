"""Write a status only when it differs from the one that is there."""

from datetime import datetime, timedelta

from sluice_api.adapter import Adapter, AdapterStatus
from sluice_api.finetunejob import FineTuneJob, FineTuneJobStatus
from sluice_api.gpupool import GPUPool, GPUPoolStatus
from sluice_api.inferenceengine import InferenceEngine, InferenceEngineStatus
from sluice_operator.cluster.writes import Cluster
from sluice_operator.observe.world import key_of

Owner = FineTuneJob | InferenceEngine | Adapter | GPUPool
Status = FineTuneJobStatus | InferenceEngineStatus | AdapterStatus | GPUPoolStatus


async def write_status(cluster: Cluster, owner: Owner, status: Status, exclude: set[str] | None = None) -> None:
    """Apply a status if it is news.

    Args:
        exclude: fields of another field manager, which are neither compared nor written.
    """
    new = status.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=exclude)
    old = owner.status.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=exclude)
    if new != old:
        await cluster.apply_status(key_of(owner), owner.metadata.uid, new)


def until(when: datetime | None, now: datetime) -> timedelta | None:
    """How long until a moment; None for no moment."""
    return None if when is None else max(when - now, timedelta(milliseconds=100))
