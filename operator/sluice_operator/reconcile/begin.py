"""Begin an attempt of a stage: the one place where its Job is made."""

import logging
from collections.abc import Iterator
from datetime import datetime

from sluice_api.claim import Outcomes
from sluice_api.finetunejob import FineTuneJob
from sluice_api.meta import OUTCOMES_ANNOTATION
from sluice_operator.build.devices import training_gpus
from sluice_operator.build.metadata import Manifest
from sluice_operator.build.network_policy import job_policy
from sluice_operator.build.stage_job import group_service, stage_job
from sluice_operator.cluster.errors import ApiError
from sluice_operator.cluster.writes import Cluster
from sluice_operator.observe.store import Store
from sluice_operator.observe.world import key_of
from sluice_operator.plan.facts.deadlines import job_deadline
from sluice_operator.plan.facts.outcomes import all_outcomes, compact
from sluice_operator.plan.facts.pools import find_pool
from sluice_operator.plan.job.situation import Start, refused_attempt
from sluice_operator.reconcile.network import keep_policy
from sluice_operator.reconcile.refused import why
from sluice_operator.reconcile.trust import publish_trust
from sluice_operator.settings import Settings

logger = logging.getLogger(__name__)


async def begin_attempt(
    store: Store, cluster: Cluster, settings: Settings, job: FineTuneJob, start: Start, now: datetime
) -> None:
    """Make an attempt's Job, after what keeps its pods apart, and what they need: ResourceClaims and host names.

    The job is looked at once more: its Job may be seen to go before it is seen that the job itself was deleted, by two
    watches, and what looks like an attempt to be made again would be one of a job that is not there.

    Raises:
        ApiError: none was made. A refusal is in the job's record by then: it is what the attempt came to.
        Outdated: the job is gone, or going.
    """
    outcomes = all_outcomes(store.world(), job)
    seconds = job_deadline(job, outcomes, start.stage)
    try:
        await cluster.require(key_of(job), job.metadata.uid)
        await keep_policy(job_policy(job, settings), store, cluster, settings)
        await publish_trust(cluster, job.metadata.namespace)
        for manifest in _needs(job, start):
            await cluster.create(manifest)
        pool = find_pool(store.world(), start.claim.pool) if start.claim else None
        tolerations = pool.spec.tolerations if pool else ()
        manifest = stage_job(job, start.stage, start.attempt, settings, start.claim, tolerations, seconds=seconds)
        await cluster.create(manifest)
    except ApiError as error:
        if error.is_refusal:
            await _record(cluster, job, outcomes, start, error, now)
        raise


def _needs(job: FineTuneJob, start: Start) -> Iterator[Manifest]:
    """What the pods of an attempt ask for by name."""
    template = training_gpus(job, start.claim) if start.claim else None
    if template is not None:
        yield template
    if start.claim is not None and job.spec.resources.nodes > 1:
        yield group_service(job)


async def _record(
    cluster: Cluster, job: FineTuneJob, outcomes: Outcomes, start: Start, error: ApiError, now: datetime
) -> None:
    outcome = refused_attempt(start, why(error), error.message, now)
    record = compact(outcomes.with_attempt(outcome))
    logger.warning("refused", extra={"job": job.metadata.full_name, "stage": start.stage, "why": error.message})
    await cluster.annotate(key_of(job), job.metadata.uid, {OUTCOMES_ANNOTATION: record.to_json()})
