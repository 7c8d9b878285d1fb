"""Whose pod should be there by now and is not: a quota may be why, and it counts our own pods that only wait too."""

from datetime import datetime, timedelta

from sluice_api.inferenceengine import InferenceEngine, SlotState
from sluice_operator.observe.views import PodView

PODS_WITHIN = timedelta(seconds=5)
"""What has been made has its pods by then: a Job's, or those of a Deployment, which takes one step more."""


def starts_until(engine: InferenceEngine, index: int, pod: PodView | None, now: datetime) -> datetime:
    """When a slot that starts has got further at the latest: it has its pod, or its pod a node.

    Counted from when the engine's status first said that it starts so, without a pod or with this one.
    """
    said = next((slot for slot in engine.status.slots if slot.index == index), None)
    name = pod.key.name if pod else ""
    since = said.since if said and (said.state, said.pod) == (SlotState.STARTING, name) else None
    return (since or now) + PODS_WITHIN
