"""Jobs that a pool can't tell apart but for their turn: what is found out about one holds for all of them."""

from collections.abc import Hashable
from functools import lru_cache

from sluice_api.finetunejob import FineTuneJob
from sluice_api.sources import volume_path
from sluice_operator.observe.world import World
from sluice_operator.plan.facts.room import claims_of_job


def alike(world: World, job: FineTuneJob) -> object:
    """The same object for jobs that are alike, another for others.

    Alike are those that agree in all that a refusal or a place may depend on, whoever made them and when.
    """
    noted = world.noted(job)
    if alike not in noted:
        spec, output = job.spec, volume_path(job.spec.output.uri)
        volumes = (claims_of_job(job), output.claim if output else "")
        noted[alike] = _class_of(
            (job.metadata.namespace, spec.resources, spec.scheduling, spec.publish, spec.lora, spec.model, volumes)
        )
    return noted[alike]


@lru_cache(maxsize=65_536)
def _class_of(_common: Hashable) -> object:
    return object()
