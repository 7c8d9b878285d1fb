"""A cluster in memory that does what decisions say, for simulations and for the property tests.

Reconciles are steps, like all that Kubernetes does there (kubernetes.py), so every interleaving can happen.
"""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from dev.simulate.kubernetes import Kubernetes
from dev.simulate.town import GPU
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.meta import (
    DEFAULT_POOL,
    OUTCOMES_ANNOTATION,
    PLACEHOLDER_GATE,
    PLACEHOLDER_LABEL,
    SLOT_LABEL,
    placeholder_name,
    stage_job_name,
)
from sluice_api.resource import Metadata
from sluice_api.stages import Stage
from sluice_operator.observe.orphans import runs
from sluice_operator.observe.views import Key, PodView
from sluice_operator.observe.world import identity, key_of
from sluice_operator.plan.allocation.allocate import allocate
from sluice_operator.plan.allocation.inventory import take_stock
from sluice_operator.plan.allocation.scale_up import plan_scale_up
from sluice_operator.plan.engine.decide import plan_engine
from sluice_operator.plan.engine.placeholders import Placeholders
from sluice_operator.plan.facts.pools import find_pool
from sluice_operator.plan.facts.slots import SlotPlan
from sluice_operator.plan.job.decide import plan_job
from sluice_operator.plan.job.holding import Limits
from sluice_operator.plan.job.situation import JobDecision, Start, next_training_attempt
from sluice_operator.plan.job.status import job_status


class Cluster(Kubernetes):
    """Kubernetes with an operator in it."""

    def __init__(self) -> None:
        super().__init__()
        self._half_done: list[tuple[FineTuneJob, Start]] = []

    # What the operator does

    def reconcile_pool(self) -> None:
        """Make the claims of those whose turn it is."""
        for job, start in self._claims():
            self._create(job, start)
        for pool in self._pools():
            self._ask_for_nodes(pool)

    def _ask_for_nodes(self, pool: GPUPool) -> None:
        asking = allocate(self.world, pool, self.now).asking
        decision = plan_scale_up(self.world, take_stock(self.world, pool), asking, self.now)
        for pod in decision.remove:
            self.town.store.remove(pod.key, pod.uid)
        for job, index in decision.make:
            self.town.scale_up_pod(job, index)

    def _pools(self) -> list[GPUPool]:
        names = (DEFAULT_POOL, *(key.name for key in self.world.pools if key.name != DEFAULT_POOL))
        return [pool for name in names if (pool := find_pool(self.world, name))]

    def pause(self) -> None:
        """The leader is stopped after it has decided and before it has written; another one follows."""
        self._half_done = list(self._claims())
        self.town.store.begin_term(self.town.store.term + 1, self.now)

    def wake(self) -> None:
        """The stopped leader makes the claims that it had decided on, long ago."""
        for job, start in self._half_done:
            name = stage_job_name(job.metadata.name, job.metadata.uid, start.stage, start.attempt)
            exists = Key("Job", job.metadata.namespace, name) in self.world.stage_jobs
            if key_of(job) in self.world.jobs and not exists:
                self._create(job, start)
        self._half_done = []

    def _claims(self) -> Iterator[tuple[FineTuneJob, Start]]:
        for pool in self._pools():
            for key, claim in allocate(self.world, pool, self.now).claims.items():
                job = self.world.jobs[key]
                yield job, Start(Stage.TRAIN, next_training_attempt(self.world, job), claim)

    def reconcile_job(self, job: FineTuneJob) -> None:
        """Bring a job one step further."""
        decision = plan_job(self.world, job, self.now, Limits())
        status = job_status(self.world, job, decision, self.now)
        self._act(job, decision)
        self._update(job.KIND.kind, job, status=status)

    def reconcile_engine(self, engine: InferenceEngine) -> None:
        """Bring an engine one step further."""
        decision = plan_engine(self.world, engine, self.now)
        self._update(engine.KIND.kind, engine, status=decision.status)
        for slot in (*decision.stop, *decision.remove):
            self._change(slot, size=0, deleting=slot in decision.remove)
        for plan in decision.apply:
            self._start_slot(engine, plan)
        for slot in decision.woken:
            self._change(slot, restarted_at=self.now)
        self._keep_places(engine, decision.placeholders)

    def end_orphans(self) -> None:
        """Delete what jobs have left behind."""
        for left in [view for views in self.town.store.links.orphaned_jobs.groups.values() for view in views.values()]:
            if runs(left):
                self._change(left, deleting=True)

    def _act(self, job: FineTuneJob, decision: JobDecision) -> None:
        if decision.record:
            metadata = job.metadata.model_copy(update={"annotations": {OUTCOMES_ANNOTATION: decision.record.to_json()}})
            self._update(job.KIND.kind, job, metadata=metadata)
        if decision.start:
            self._create(job, decision.start)
        for pod, node in decision.bind:
            self._change(pod, gates=(), bound_at=self.now, nominated_node=node)
        for doomed in decision.delete:
            self._change(doomed, deleting=True)

    def _create(self, job: FineTuneJob, start: Start) -> None:
        made = self.town.stage_job(job, start.stage, start.attempt, start.claim, created=self.now)
        if start.claim:
            self.claimed[made.uid] = start.claim

    def _start_slot(self, engine: InferenceEngine, plan: SlotPlan) -> None:
        slot = next((s for s in self.world.slots_of.get(identity(engine), {}).values() if s.index == plan.index), None)
        if slot is None:
            self.town.slot(engine, plan.index, size=0)
            slot = next(s for s in self.world.slots_of[identity(engine)].values() if s.index == plan.index)
        self._change(slot, size=1, restarted_at=plan.restarted_at)

    def _keep_places(self, engine: InferenceEngine, decision: Placeholders) -> None:
        for pod, node in decision.nominate:
            self._change(pod, nominated_node=node)
        for index, node in decision.make:
            version, created = self.town._next()
            namespace, name = engine.metadata.namespace, engine.metadata.name
            self.town.put(
                PodView(
                    key=Key("Pod", namespace, placeholder_name(name, index)),
                    uid=f"placeholder-{version}",
                    resource_version=version,
                    created=created,
                    labels={PLACEHOLDER_LABEL: name, SLOT_LABEL: str(index)},
                    requests={GPU: engine.spec.resources.gpus},
                    gates=(PLACEHOLDER_GATE,),
                    nominated_node=node,
                )
            )
        for pod in decision.remove:
            self.town.store.remove(pod.key, pod.uid)

    def round(self, seconds: float = 1) -> None:
        """Everybody does their part once, and time passes."""
        self.reconcile_pool()
        for job in list(self.world.jobs.values()):
            self.reconcile_job(job)
        self.end_orphans()
        for engine in list(self.world.engines.values()):
            self.reconcile_engine(engine)
        self.controllers()
        self.scheduler()
        self.kubelet()
        self.pass_time(seconds)

    # What people and machines do

    def respec(self, resource: FineTuneJob | InferenceEngine, **spec: Any) -> None:
        """Change fields of a spec."""
        self._update(resource.KIND.kind, resource, spec=resource.spec.model_copy(update=spec))

    def delete_job(self, job: FineTuneJob) -> None:
        """Delete a job; its children go with it, later."""
        self.town.store.remove(key_of(job), job.metadata.uid)

    def delete_job_that_is_kept(self, job: FineTuneJob) -> None:
        """Delete a job that has a finalizer: it stays, and so would its children."""
        self._update(job.KIND.kind, job, metadata=job.metadata.model_copy(update={"deletion_timestamp": self.now}))

    def orphan(self, job: FineTuneJob) -> None:
        """Delete a job and leave its children without an owner."""
        children = list(self.world.stage_jobs_of.get(identity(job), {}).values())
        self.delete_job(job)
        for stage_job in children:
            self._change(stage_job, owner=None)

    def pass_time(self, seconds: float) -> None:
        """Let the clock go on."""
        self.now += timedelta(seconds=seconds)

    def _update(self, kind: str, resource: FineTuneJob | InferenceEngine, **parts: Any) -> None:
        held: Mapping[Key, Any] = self.world.jobs if kind == "FineTuneJob" else self.world.engines
        current = held.get(Key(kind, resource.metadata.namespace, resource.metadata.name))
        if current is None or all(getattr(current, name) == value for name, value in parts.items()):
            return
        self.town.version += 1
        metadata: Metadata = parts.pop("metadata", current.metadata)
        version = {"resource_version": str(self.town.version)}
        self.town.put(current.model_copy(update={**parts, "metadata": metadata.model_copy(update=version)}))
