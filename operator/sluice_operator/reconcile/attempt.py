"""The writes that begin an attempt of a stage: the one place where its Job is made."""

from collections.abc import Iterator
from datetime import datetime

from sluice_api.finetunejob import FineTuneJob
from sluice_api.meta import OUTCOMES_ANNOTATION
from sluice_operator.facts.nodes import find_pool
from sluice_operator.facts.outcomes import all_outcomes, compact
from sluice_operator.manifests.devices import training_gpus
from sluice_operator.manifests.network_policy import job_policy
from sluice_operator.manifests.stage_job import group_service, stage_job
from sluice_operator.observe.world import World, key_of
from sluice_operator.plan.job.situation import Start, refused_attempt
from sluice_operator.plan.readiness import job_deadline
from sluice_operator.reconcile.context import Context
from sluice_operator.reconcile.refused import reason_of
from sluice_operator.writes import Annotate, Create, Keep, Manifest, Refused, Require, Writes


def attempt_writes(world: World, job: FineTuneJob, start: Start, c: Context) -> Writes:
    """An attempt's Job, after what keeps its pods apart, and what they need: ResourceClaims and host names.

    The job is looked at once more first: its Job may be seen to go before it is seen that the job itself was deleted,
    by two watches, and what looks like an attempt to be made again would be one of a job that is not there.
    """
    pool = find_pool(world, start.claim.pool) if start.claim else None
    tolerations = pool.spec.tolerations if pool else ()
    seconds = job_deadline(job, all_outcomes(world, job), start.stage)
    return (
        Require(key_of(job), job.metadata.uid),
        Keep(job_policy(job, c.settings), c.settings.network.workloads),
        *c.trust_writes(job.metadata.namespace),
        *(Create(manifest) for manifest in _needs(job, start)),
        Create(stage_job(job, start.stage, start.attempt, c.settings, start.claim, tolerations, seconds=seconds)),
    )


def _needs(job: FineTuneJob, start: Start) -> Iterator[Manifest]:
    """What the pods of an attempt ask for by name."""
    template = training_gpus(job, start.claim) if start.claim else None
    if template is not None:
        yield template
    if start.claim is not None and job.spec.resources.nodes > 1:
        yield group_service(job)


def refused_writes(world: World, job: FineTuneJob, start: Start, refused: Refused, now: datetime) -> Writes:
    """What an attempt came to that the API server refuses to make: it is in the job's record."""
    outcome = refused_attempt(start, reason_of(refused), refused.message, now)
    record = compact(all_outcomes(world, job).with_attempt(outcome))
    return (Annotate(key_of(job), job.metadata.uid, {OUTCOMES_ANNOTATION: record.to_json()}),)
