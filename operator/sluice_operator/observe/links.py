"""Which objects are looked at again when another one changes? Indices of what depends on what."""

from contextlib import suppress

from sluice_api.adapter import Adapter
from sluice_api.finetunejob import FineTuneJob
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.sources import claims_of
from sluice_operator.observe.index import Index
from sluice_operator.observe.index_keys import by_lender
from sluice_operator.observe.orphans import left_by
from sluice_operator.observe.views import PodView, StageJobView, VolumeClaimView

NamespacedName = tuple[str, str]
"""Namespace and name."""


def _pool_of_job(job: FineTuneJob) -> tuple[str, ...]:
    return (job.spec.resources.pool,)


def _pool_of_engine(engine: InferenceEngine) -> tuple[str, ...]:
    return (engine.spec.resources.pool,)


def _published_as(job: FineTuneJob) -> tuple[NamespacedName, ...]:
    return ((job.metadata.namespace, job.spec.publish.name),) if job.spec.publish else ()


def _volume_claims(job: FineTuneJob) -> tuple[NamespacedName, ...]:
    try:
        names = job.spec.volumes
    except ValueError:  # a path that leads out of its volume claim; the job's own reconcile says so
        return ()
    return tuple((job.metadata.namespace, name) for name in names)


def _engine_volume_claims(engine: InferenceEngine) -> tuple[NamespacedName, ...]:
    found: list[str] = []
    for uri in engine.spec.addresses.values():
        with suppress(ValueError):  # a path that leads out of its volume claim
            found += claims_of(uri)
    return tuple((engine.metadata.namespace, name) for name in dict.fromkeys(found))


def _engine_of(adapter: Adapter) -> tuple[NamespacedName, ...]:
    return ((adapter.metadata.namespace, adapter.spec.engine),)


def _volume(claim: VolumeClaimView) -> tuple[str, ...]:
    return (claim.volume,) if claim.volume else ()


class Links:
    """Objects by what they depend on."""

    def __init__(self) -> None:
        self.jobs_in_pool: Index[str, FineTuneJob] = Index(_pool_of_job)
        self.engines_in_pool: Index[str, InferenceEngine] = Index(_pool_of_engine)
        self.publishing_as: Index[NamespacedName, FineTuneJob] = Index(_published_as)
        """Jobs by the Adapter that they write."""
        self.mounting: Index[NamespacedName, FineTuneJob] = Index(_volume_claims)
        """Jobs by the PersistentVolumeClaims that they name."""
        self.serving_from: Index[NamespacedName, InferenceEngine] = Index(_engine_volume_claims)
        """Engines by the PersistentVolumeClaims that they name."""
        self.adapters_on: Index[NamespacedName, Adapter] = Index(_engine_of)
        self.borrowing: Index[NamespacedName, StageJobView] = Index(by_lender)
        """Stage Jobs by the engines from which their claims borrow."""
        self.orphaned_jobs: Index[NamespacedName, StageJobView] = Index(left_by)
        self.orphaned_pods: Index[NamespacedName, PodView] = Index(left_by)
        """Orphans (Jobs above, pods here) by the job that left them."""
        self.bound_to: Index[str, VolumeClaimView] = Index(_volume)
        """PersistentVolumeClaims by the volume that they are bound to."""
