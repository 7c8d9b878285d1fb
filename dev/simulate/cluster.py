"""A cluster in memory that does what decisions say, for simulations and for the property tests.

It has a Job controller, a Deployment controller, a scheduler and a kubelet, each as one step that may
come late. Reconciles are steps too, so every interleaving of them can happen.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from dev.simulate.town import GPU, NOW, Town
from sluice_api.claim import Claim
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import ASLEEP, AWAKE, InferenceEngine
from sluice_api.meta import (
    DEFAULT_POOL,
    ENGINE_LABEL,
    OUTCOMES_ANNOTATION,
    PLACEHOLDER_GATE,
    PLACEHOLDER_LABEL,
    SCHEDULING_GATE,
    SLOT_LABEL,
    placeholder_name,
    stage_job_name,
)
from sluice_api.resource import Metadata
from sluice_api.stages import ExitCode, ExportResult, Stage, StageOutcome, TrainResult
from sluice_operator.observe.views import Key, NodeView, PodView, SlotView, StageJobView, Termination, View
from sluice_operator.observe.world import World, engine_key, key_of
from sluice_operator.plan.allocation.allocate import allocate
from sluice_operator.plan.allocation.inventory import take_stock
from sluice_operator.plan.allocation.scale_up import plan_scale_up
from sluice_operator.plan.engine.decide import plan_engine
from sluice_operator.plan.engine.placeholders import Placeholders
from sluice_operator.plan.facts.pools import find_pool, nodes_of
from sluice_operator.plan.facts.slots import SlotPlan, sleeps
from sluice_operator.plan.job.decide import plan_job
from sluice_operator.plan.job.holding import Limits
from sluice_operator.plan.job.situation import JobDecision, Start, next_training_attempt
from sluice_operator.plan.job.status import job_status


class Cluster:
    """A Town whose objects change as a cluster's would."""

    def __init__(self) -> None:
        self.town = Town()
        self.now: datetime = NOW
        self.made = 0
        self.awake: set[str] = set()
        """Uids of pods whose vLLM may have memory of its GPUs, of engines that sleep while they lend."""
        self.claimed: dict[str, Claim] = {}
        """What training Jobs hold or held, by uid: those that are gone too."""
        self._half_done: list[tuple[FineTuneJob, Start]] = []

    @property
    def world(self) -> World:
        """What is known now."""
        return self.town.world

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
        self.town.store.term += 1

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
        slot = next(
            (s for s in self.world.slots_of.get(engine.metadata.uid, {}).values() if s.index == plan.index), None
        )
        if slot is None:
            self.town.slot(engine, plan.index, size=0)
            slot = next(s for s in self.world.slots_of[engine.metadata.uid].values() if s.index == plan.index)
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
        for engine in list(self.world.engines.values()):
            self.reconcile_engine(engine)
        self.controllers()
        self.scheduler()
        self.kubelet()
        self.pass_time(seconds)

    # What Kubernetes does

    def controllers(self) -> None:
        """Jobs and Deployments make their pods, and those that are being deleted lose theirs."""
        for stage_job in list(self.world.stage_jobs.values()):
            pods = self.world.pods_of.get(stage_job.uid, {})
            if stage_job.deleting:
                self._delete_pods(list(pods.values()))
                if all(pod.ended for pod in pods.values()):
                    self.town.store.remove(stage_job.key, stage_job.uid)
                    for pod in list(pods.values()):
                        self.town.store.remove(pod.key, pod.uid)
            elif not pods and not stage_job.finished:
                self._make_pods(stage_job)
            elif not stage_job.finished:
                self._finish(stage_job, list(pods.values()))
        self._deployments()
        self._orphans()

    def _make_pods(self, stage_job: StageJobView) -> None:
        gates = (SCHEDULING_GATE,) if stage_job.claim else ()
        for index in range(len(stage_job.claim.nodes) if stage_job.claim else 1):
            self.made += 1
            self.town.trainer_pod(stage_job, index=index, created=self.now, gates=gates)

    def _finish(self, stage_job: StageJobView, pods: list[PodView]) -> None:
        """The pod with index 0 decides for all when it ends well, and any that fails."""
        good = any(pod.index == 0 and _exit_code(pod) == 0 for pod in pods)
        if not good and not any(_exit_code(pod) for pod in pods):
            return
        self._delete_pods(pods)
        if all(pod.ended for pod in self.world.pods_of[stage_job.uid].values()):
            self._change(stage_job, finished="Complete" if good else "Failed", finished_at=self.now)

    def _deployments(self) -> None:
        for slot in list(self.world.slots.values()):
            pods = list(self.world.engine_pods.get((slot.key.namespace, slot.engine, slot.index), {}).values())
            alive = [pod for pod in pods if not pod.ended]
            if slot.size == 0 or slot.deleting:
                self._delete_pods(alive)
                if slot.deleting:
                    self.town.store.remove(slot.key, slot.uid)
            elif not alive:
                self._slot_pod(slot)

    def _slot_pod(self, slot: SlotView) -> None:
        self.made += 1
        owner = self.world.engines.get(engine_key(slot.key.namespace, slot.engine))
        version, created = self.town._next()
        if owner:
            self.town.put(
                PodView(
                    key=Key("Pod", slot.key.namespace, f"{slot.key.name}-{self.made}"),
                    uid=f"slot-pod-{self.made}",
                    resource_version=version,
                    created=created,
                    labels=slot.labels,
                    requests={GPU: owner.spec.resources.gpus, "cpu": 100, "memory": 1 << 20},
                    template=slot.template,
                )
            )

    def _orphans(self) -> None:
        """The garbage collector: children of a deleted job go."""
        uids = {job.metadata.uid for job in self.world.jobs.values()}
        for stage_job in list(self.world.stage_jobs.values()):
            if stage_job.owner and stage_job.owner.uid not in uids and not stage_job.deleting:
                self._change(stage_job, deleting=True)
        for pod in [pod for pods in self.world.scale_ups.values() for pod in pods.values()]:
            if pod.owner and pod.owner.uid not in uids:
                self.town.store.remove(pod.key, pod.uid)

    def _delete_pods(self, pods: list[PodView]) -> None:
        for pod in pods:
            if not pod.deleting and not pod.ended:
                self._change(pod, deleting=True, ready=False)
            if not pod.node and not pod.ended:
                self._change(pod, deleting=True, ended=True, ready=False)

    def scheduler(self) -> None:
        """Bind what fits: trainers before engines, each only where it may go. Nominations keep their GPUs."""
        waiting = [p for p in self.world.pods.values() if not p.node and not p.gates and not p.ended and not p.deleting]
        for pod in sorted(waiting, key=lambda p: (-_priority(p), p.created, p.key)):
            for node in sorted(self.world.nodes.values(), key=lambda n: n.key):
                if not self._may_go(pod, node):
                    continue
                if self._takes(pod, node) <= self._free(node, pod):
                    self._change(pod, node=node.key.name, running=True)
                    break

    def _may_go(self, pod: PodView, node: NodeView) -> bool:
        """Nominated pods go where they are nominated, engines to nodes of their pool."""
        engine = self.world.engines.get(engine_key(pod.key.namespace, pod.labels.get(ENGINE_LABEL, "")))
        pool = find_pool(self.world, engine.spec.resources.pool) if engine else None
        if pool and node not in nodes_of(self.world, pool):
            return False
        return pod.nominated_node in ("", node.key.name)

    def strangers(self) -> None:
        """Somebody else's pods, of the placeholders' priority, of which one always waits for any GPU."""
        for node in self.world.nodes.values():
            for _ in range(self._free(node)):
                self.town.stranger(node.key.name, 1)

    def _free(self, node: NodeView, pod: PodView | None = None) -> int:
        """GPUs that the scheduler sees as free for a pod: nominated pods of its priority and above count too."""
        here = self.world.pods_on.get(node.key.name, {}).values()
        nominated = [
            other
            for other in self.world.pods.values()
            if other.nominated_node == node.key.name and not other.node and not other.ended and other is not pod
        ]
        taken = [p for p in here if not p.ended] + [p for p in nominated if _priority(p) >= _priority(pod)]
        return node.allocatable[GPU] - sum(self._takes(p, node) for p in taken)

    def _takes(self, pod: PodView, node: NodeView) -> int:
        """GPUs that a pod takes of a node; those that it shares with slots that keep their pods are not its own."""
        shared = [other for other in self.lent_pods(pod) if other.node == node.key.name]
        return max(0, pod.requests.get(GPU, 0) - sum(other.requests.get(GPU, 0) for other in shared))

    def lent_pods(self, trainer: PodView) -> list[PodView]:
        """The pods of the slots that a trainer borrows from engines that sleep."""
        claim = self.claimed.get(trainer.owner.uid) if trainer.owner else None
        found = []
        for slot in claim.borrowed if claim else ():
            engine = self.world.engines.get(engine_key(slot.namespace, slot.engine))
            if engine and sleeps(engine):
                pods = self.world.engine_pods.get((slot.namespace, slot.engine, slot.index), {})
                found += [pod for pod in pods.values() if not pod.ended]
        return found

    def kubelet(self) -> None:
        """Deleted pods end; bound ones of engines become ready; CPU stages are done at once."""
        self.agents()
        for pod in list(self.world.pods.values()):
            if pod.deleting and pod.node and not pod.ended:
                told = StageOutcome(reason="Requeued", train=TrainResult(step=1, total_steps=9, checkpoint_step=1))
                self._end(pod, ExitCode.REQUEUE, told)
            elif pod.node and pod.labels.get("sluice.dev/stage") == Stage.EXPORT and not pod.ended:
                result = ExportResult(uri="pvc://adapters/x", digest="sha256:" + "0" * 64, rank=16, size_bytes=1)
                self._end(pod, 0, StageOutcome(reason="Done", export=result))

    def agents(self) -> None:
        """Engines' pods do what the status says of their slots, and say so."""
        for pod in [pod for pods in self.world.engine_pods.values() for pod in pods.values()]:
            if pod.node and not pod.deleting and not pod.ended:
                rests = self._rests(pod)
                draining = self._is_draining(pod) or rests
                self._change(pod, ready=not draining and self.is_up(pod))
                self.town.report(self.world.pods[pod.key], 0, draining=draining, quiet=9, at=self.now, asleep=rests)

    def is_up(self, pod: PodView) -> bool:
        """Whether an engine's pod on its node answers already."""
        return bool(pod.node)

    def _is_draining(self, pod: PodView) -> bool:
        engine = self._engine_of(pod)
        slots = engine.status.slots if engine else ()
        return any(slot.pod == pod.key.name and slot.state == "Draining" for slot in slots)

    def _rests(self, pod: PodView) -> bool:
        """What the agent of a slot does that sleeps: it wakes, or lets vLLM start, on the operator's word alone."""
        engine = self._engine_of(pod)
        if engine is None or not sleeps(engine):
            return False
        state = next((s.state for s in engine.status.slots if str(s.index) == pod.labels[SLOT_LABEL]), None)
        if state in AWAKE:
            self.awake.add(pod.uid)
        elif state in ASLEEP:
            self.awake.discard(pod.uid)
        return pod.uid not in self.awake

    def _engine_of(self, pod: PodView) -> InferenceEngine | None:
        return self.world.engines.get(engine_key(pod.key.namespace, pod.labels[ENGINE_LABEL]))

    def _end(self, pod: PodView, code: int, told: StageOutcome | None) -> None:
        termination = Termination(int(code), "", told.to_json() if told else "", self.now)
        self._change(pod, ended=True, running=False, ready=False, termination=termination)

    def end_training(self, pod: PodView, code: int, reason: str) -> None:
        """Have a trainer end, with an exit code and what it says of it."""
        result = TrainResult(step=9, total_steps=9) if code == 0 else None
        self._end(pod, code, StageOutcome(reason=reason, train=result))

    # What people and machines do

    def respec(self, resource: FineTuneJob | InferenceEngine, **spec: Any) -> None:
        """Change fields of a spec."""
        self._update(resource.KIND.kind, resource, spec=resource.spec.model_copy(update=spec))

    def delete_job(self, job: FineTuneJob) -> None:
        """Delete a job; its children go with it, later."""
        self.town.store.remove(Key("FineTuneJob", job.metadata.namespace, job.metadata.name), job.metadata.uid)

    def pass_time(self, seconds: float) -> None:
        """Let the clock go on."""
        self.now += timedelta(seconds=seconds)

    def _change(self, view: View, **changes: Any) -> None:
        tables: dict[str, Mapping[Key, Any]] = {
            "Pod": self.world.pods,
            "Job": self.world.stage_jobs,
            "Deployment": self.world.slots,
        }
        current = tables[view.key.kind].get(view.key)
        if current is not None and any(getattr(current, name) != value for name, value in changes.items()):
            self.town.version += 1
            self.town.put(replace(current, resource_version=self.town.version, **changes))

    def _update(self, kind: str, resource: FineTuneJob | InferenceEngine, **parts: Any) -> None:
        held: Mapping[Key, Any] = self.world.jobs if kind == "FineTuneJob" else self.world.engines
        current = held.get(Key(kind, resource.metadata.namespace, resource.metadata.name))
        if current is None or all(getattr(current, name) == value for name, value in parts.items()):
            return
        self.town.version += 1
        metadata: Metadata = parts.pop("metadata", current.metadata)
        version = {"resource_version": str(self.town.version)}
        self.town.put(current.model_copy(update={**parts, "metadata": metadata.model_copy(update=version)}))


def _priority(pod: PodView | None) -> int:
    """As the chart has it; a pod of others has its placeholders' priority."""
    labels = pod.labels if pod else {}
    return 1000 if "sluice.dev/job" in labels else 10 if "sluice.dev/engine" in labels else 9


def _exit_code(pod: PodView) -> int | None:
    """How a pod ended; None while it has not."""
    if pod.termination:
        return pod.termination.exit_code
    return 1 if pod.ended else None
