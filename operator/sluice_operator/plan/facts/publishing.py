"""Whose the Adapter is that a job would write."""

from sluice_api.finetunejob import FineTuneJob
from sluice_api.meta import JOB_LABEL
from sluice_operator.observe.world import World, adapter_key


def name_taken(world: World, job: FineTuneJob) -> str:
    """Why a job may not write its Adapter; empty when it may, or publishes nothing.

    It may where none is there, where a job of its name has written it (itself, or one before it that was deleted
    since), and any that spec.publish.replace gives it.
    """
    publish = job.spec.publish
    there = world.adapters.get(adapter_key(job.metadata.namespace, publish.name)) if publish else None
    if publish is None or there is None:
        return ""
    if there.spec.engine != publish.engine:
        return (
            f"spec.publish.name: Adapter {publish.name} is one of engine {there.spec.engine}, and an Adapter's engine "
            "cannot be changed. Delete it, or publish under another name."
        )
    maker = there.metadata.labels.get(JOB_LABEL)
    if publish.replace or maker == job.metadata.name:
        return ""
    whose = f"was written by FineTuneJob {maker}" if maker else "was not written by a job"
    return (
        f"spec.publish.name: Adapter {publish.name} is there already, and {whose}. Set spec.publish.replace: true to "
        "replace it, or delete it."
    )
