"""What Kubernetes does with objects: controllers, a scheduler, a kubelet, and the agents of engines.

Each is one step, and may come late.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from dev.simulate.builder import GPU, NOW, WorldBuilder
from sluice_api.claim import Claim
from sluice_api.inferenceengine import ASLEEP, AWAKE, InferenceEngine
from sluice_api.meta import (
    ENGINE_LABEL,
    SCHEDULING_GATE,
    SLOT_LABEL,
)
from sluice_api.reports import EngineReport
from sluice_api.stages import ExitCode, ExportResult, Stage, StageOutcome, TrainResult
from sluice_operator.facts.nodes import find_pool, nodes_of
from sluice_operator.facts.slots import sleeps
from sluice_operator.observe.views import Key, NodeView, Owner, PodView, SlotView, StageJobView, Termination, View
from sluice_operator.observe.world import World, engine_key, identity


class Kubernetes:
    """A WorldBuilder whose objects change as a cluster's would, whatever is written into it."""

    def __init__(self) -> None:
        self.builder = WorldBuilder()
        self.now: datetime = NOW
        self.made = 0
        self.awake: set[str] = set()
        """Uids of pods whose vLLM may have memory of its GPUs, of engines that sleep while they lend."""
        self.claimed: dict[str, Claim] = {}
        """What training Jobs hold or held, by uid: those that are gone too."""
        self.builder.store.listen(self._note_claim)

    def _note_claim(self, _old: object, new: object) -> None:
        if isinstance(new, StageJobView) and new.claim:
            self.claimed.setdefault(new.uid, new.claim)

    @property
    def world(self) -> World:
        """What is known now."""
        return self.builder.world

    def controllers(self) -> None:
        """Jobs and Deployments make their pods, and those that are being deleted lose theirs."""
        for stage_job in list(self.world.stage_jobs.values()):
            pods = self.world.pods_of.get(identity(stage_job), {})
            if stage_job.deleting:
                self._delete_pods(list(pods.values()))
                if all(pod.ended for pod in pods.values()):
                    self.builder.store.remove(stage_job.key, stage_job.uid)
                    for pod in list(pods.values()):
                        self.builder.store.remove(pod.key, pod.uid)
            elif not pods and not stage_job.finished:
                self._make_pods(stage_job)
            elif not stage_job.finished:
                self._finish(stage_job, list(pods.values()))
        self._deployments()
        self._orphans()
        self._device_claims()

    def _make_pods(self, stage_job: StageJobView) -> None:
        gates = (SCHEDULING_GATE,) if stage_job.claim else ()
        for index in range(len(stage_job.claim.nodes) if stage_job.claim else 1):
            self.made += 1
            self.builder.trainer_pod(stage_job, index=index, created=self.now, gates=gates)

    def _finish(self, stage_job: StageJobView, pods: list[PodView]) -> None:
        """The pod with index 0 decides for all when it ends well, and any that fails."""
        good = any(pod.index == 0 and _exit_code(pod) == 0 for pod in pods)
        if not good and not any(_exit_code(pod) for pod in pods):
            return
        self._delete_pods(pods)
        if all(pod.ended for pod in self.world.pods_of[identity(stage_job)].values()):
            self._change(stage_job, finished="Complete" if good else "Failed", finished_at=self.now)

    def _deployments(self) -> None:
        for slot in list(self.world.slots.values()):
            pods = list(self.world.engine_pods.get((slot.key.namespace, slot.engine, slot.index), {}).values())
            alive = [pod for pod in pods if not pod.ended]
            if slot.size == 0 or slot.deleting:
                self._delete_pods(alive)
                if slot.deleting:
                    self.builder.store.remove(slot.key, slot.uid)
            elif not alive:
                self._slot_pod(slot)

    def _slot_pod(self, slot: SlotView) -> None:
        self.made += 1
        owner = self.world.engines.get(engine_key(slot.key.namespace, slot.engine))
        version, created = self.builder._next()
        if owner:
            self.builder.put(
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
                self.builder.store.remove(pod.key, pod.uid)

    def _device_claims(self) -> None:
        """Made for a pod, they go when it has ended or is gone."""
        using = {pod.uid for pod in self.world.pods.values() if not pod.ended}
        for claim in [claim for claims in self.world.device_claims_on.values() for claim in claims.values()]:
            if claim.owner and claim.owner.kind == "Pod" and claim.owner.uid not in using:
                self.builder.store.remove(claim.key, claim.uid)

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
                    self._give_devices(pod, node)
                    break

    def _give_devices(self, pod: PodView, node: NodeView) -> None:
        """What a trainer has of its own where DRA serves GPUs is in a ResourceClaim, which goes with its pod."""
        claim = self.claimed.get(pod.owner.uid) if pod.owner else None
        if claim and claim.own_devices:
            owner = Owner("Pod", pod.key.name, pod.uid)
            self.builder.has(f"{pod.key.name}-gpus", node.key.name, claim.own_devices, pod.key.namespace, owner)

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
                self.builder.stranger(node.key.name, 1)

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
                before = self.world.reports.get(pod.uid)
                self.builder.report(self.world.pods[pod.key], 0, draining=draining, quiet=9, at=self.now, asleep=rests)
                self.heard(self.world.pods[pod.key], before.report if before else None)

    def heard(self, pod: PodView, before: EngineReport | None) -> None:
        """A pod of an engine has reported: a hook for whoever is to act on it."""

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

    def _change(self, view: View, **changes: Any) -> None:
        tables: dict[str, Mapping[Key, Any]] = {
            "Pod": self.world.pods,
            "Job": self.world.stage_jobs,
            "Deployment": self.world.slots,
        }
        current = tables[view.key.kind].get(view.key)
        if current is not None and any(getattr(current, name) != value for name, value in changes.items()):
            self.builder.version += 1
            self.builder.put(replace(current, resource_version=self.builder.version, **changes))


def _priority(pod: PodView | None) -> int:
    """As the chart has it; a pod of others has its placeholders' priority."""
    labels = pod.labels if pod else {}
    return 1000 if "sluice.dev/job" in labels else 10 if "sluice.dev/engine" in labels else 9


def _exit_code(pod: PodView) -> int | None:
    """How a pod ended; None while it has not."""
    if pod.termination:
        return pod.termination.exit_code
    return 1 if pod.ended else None
