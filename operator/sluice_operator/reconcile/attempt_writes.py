"""The writes that begin an attempt of a stage. An attempt's Job is made here only."""

from collections.abc import Iterator
from datetime import datetime

from sluice_api.finetunejob import FineTuneJob
from sluice_api.meta import OUTCOMES_ANNOTATION
from sluice_api.stages import Stage
from sluice_operator.facts.gpus import pool_facts
from sluice_operator.facts.nodes import find_pool
from sluice_operator.facts.outcomes import all_outcomes, compact
from sluice_operator.manifests.devices import training_gpus
from sluice_operator.manifests.network_policy import job_policy
from sluice_operator.manifests.stage_job import group_service, stage_job
from sluice_operator.observe.world import World, key_of
from sluice_operator.plan.deadlines import job_deadline
from sluice_operator.plan.job.situation import Start, refused_attempt
from sluice_operator.reconcile.context import Context
from sluice_operator.reconcile.refused import reason_of
from sluice_operator.writes import Annotate, Create, Keep, Manifest, Refused, Require, Writes


def attempt_writes(world: World, job: FineTuneJob, start: Start, c: Context) -> Writes:
    """The writes that make an attempt's Job, after its network policy and all that its pods need.

    `Require` comes first because two watches may disagree: the Job may be seen to go before the deletion of the
    FineTuneJob is seen. Then an attempt would be made again for a job that does not exist.
    """
    pool = find_pool(world, start.claim.pool) if start.claim else None
    tolerations = pool.spec.tolerations if pool else ()
    seconds = job_deadline(job, all_outcomes(world, job), start.stage)
    return (
        Require(key_of(job), job.metadata.uid),
        Keep(job_policy(job, c.settings), c.settings.network.workloads),
        *c.trust_writes(job.metadata.namespace),
        *(Create(manifest) for manifest in _needs(job, start)),
        Create(
            stage_job(
                job,
                start.stage,
                start.attempt,
                c.settings,
                start.claim,
                tolerations,
                seconds=seconds,
                pool=pool_facts(world, job) if start.stage is Stage.PREPARE else None,
            )
        ),
    )


def _needs(job: FineTuneJob, start: Start) -> Iterator[Manifest]:
    """What an attempt's pods ask for by name: a ResourceClaimTemplate, and the Service that gives host names."""
    template = training_gpus(job, start.claim) if start.claim else None
    if template is not None:
        yield template
    if start.claim is not None and job.spec.resources.nodes > 1:
        yield group_service(job)


def refused_writes(world: World, job: FineTuneJob, start: Start, refused: Refused, now: datetime) -> Writes:
    """The write that records an attempt as refused, in the job's annotation."""
    outcome = refused_attempt(start, reason_of(refused), refused.message, now)
    record = compact(all_outcomes(world, job).with_attempt(outcome))
    return (Annotate(key_of(job), job.metadata.uid, {OUTCOMES_ANNOTATION: record.to_json()}),)
