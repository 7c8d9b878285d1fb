"""Begin an attempt of a stage: the one place where its Job is made."""

from sluice_api.claim import Claim
from sluice_api.finetunejob import FineTuneJob
from sluice_api.stages import Stage
from sluice_operator.build.devices import training_gpus
from sluice_operator.build.network_policy import job_policy
from sluice_operator.build.stage_job import stage_job
from sluice_operator.cluster.writes import Cluster
from sluice_operator.observe.store import Store
from sluice_operator.plan.facts.pools import find_pool
from sluice_operator.reconcile.network import keep_policy
from sluice_operator.reconcile.trust import publish_trust
from sluice_operator.settings import Settings


async def begin_attempt(
    store: Store,
    cluster: Cluster,
    job: FineTuneJob,
    stage: Stage,
    attempt: int,
    settings: Settings,
    claim: Claim | None = None,
) -> None:
    """Make an attempt's Job, after what keeps its pods apart, and what they get their devices from at once."""
    await keep_policy(job_policy(job, settings), store, cluster, settings)
    pool = find_pool(store.world(), claim.pool) if claim else None
    manifest = stage_job(job, stage, attempt, settings, claim, pool.spec.tolerations if pool else ())
    template = training_gpus(job, claim) if claim else None
    await publish_trust(cluster, job.metadata.namespace)
    if template is not None:
        await cluster.create(template)
    await cluster.create(manifest)
