"""A World written in one line, and an allocation read as one.

    pool: 2 gpus | chat: 2 replicas, floor 1, in flight 9 0 | a: needs 1

`pool: 2 4 gpus` are two nodes, n1 and n2. An engine's replicas are bound to nodes in order and serve,
unless `ready K` says that only the first K do. A job is ready for GPUs; `on n1` gives it a bound claim,
`takes chat/1 on n1` one that borrows. A job that `yields` gives way to a higher priority at once.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

from sluice_api.claim import AttemptOutcome, Claim, Outcomes, SlotRef
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.meta import DEFAULT_GPU_RESOURCE, OUTCOMES_ANNOTATION, SCHEDULING_GATE, stage_job_name
from sluice_api.reports import EngineReport
from sluice_api.stages import PrepareResult, Stage
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import (
    ClaimView,
    Key,
    NamespaceView,
    NodeView,
    Owner,
    PodView,
    SlotView,
    StageJobView,
)
from sluice_operator.observe.world import Reported, World, key_of, pool_key
from sluice_operator.plan.allocation import Allocation, allocate
from sluice_operator.plan.pools import find_pool
from sluice_operator.plan.slots import template_of

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
GPU = DEFAULT_GPU_RESOURCE
YIELDS = {"policy": "ToHigherPriority", "minRunSeconds": 0}
PREPARED = AttemptOutcome(
    stage=Stage.PREPARE,
    attempt=1,
    reason="Done",
    started_at=NOW - timedelta(minutes=5),
    ended_at=NOW - timedelta(minutes=4),
    prepare=PrepareResult(rows=90, validation_rows=10, refused_rows=0, tokens=4000, learnt_tokens=1000, steps=30),
)


class Town:
    """A store that is filled in a few words."""

    def __init__(self) -> None:
        self.store = Store()
        self.store.term = 1
        self.clock = NOW - timedelta(hours=1)
        self.version = 0
        self.nodes: list[NodeView] = []

    @property
    def world(self) -> World:
        return self.store.world()

    def put(self, *objects: Any) -> None:
        for thing in objects:
            self.store.put(thing, seen=True)

    def _next(self) -> tuple[int, datetime]:
        self.version += 1
        self.clock += timedelta(seconds=1)
        return self.version, self.clock

    def node(self, gpus: int, memory: int = 64 << 30, **changes: Any) -> NodeView:
        version, created = self._next()
        name = f"n{len(self.nodes) + 1}"
        node = NodeView(
            key=Key("Node", "", name),
            uid=f"node-{name}",
            resource_version=version,
            created=created,
            labels={"kubernetes.io/hostname": name},
            allocatable={GPU: gpus, "cpu": 32000, "memory": memory},
            **changes,
        )
        self.nodes.append(node)
        self.put(node)
        return node

    def pool(self, **spec: Any) -> None:
        """The pool `default`, with what a parsed world does not say."""
        version, created = self._next()
        metadata = {"name": "default", "uid": "pool", "resourceVersion": str(version), "creationTimestamp": created}
        self.put(GPUPool.model_validate({"kind": "GPUPool", "metadata": metadata, "spec": spec}))

    def namespace(self, name: str, **labels: str) -> None:
        version, created = self._next()
        key = Key("Namespace", "", name)
        self.put(NamespaceView(key=key, uid=f"ns-{name}", resource_version=version, created=created, labels=labels))

    def engine(self, name: str, replicas: int, namespace: str = "team", **spec: Any) -> InferenceEngine:
        version, created = self._next()
        engine = InferenceEngine.model_validate(
            {
                "kind": "InferenceEngine",
                "metadata": {
                    "name": name,
                    "namespace": namespace,
                    "uid": f"engine-{name}",
                    "generation": 1,
                    "resourceVersion": str(version),
                    "creationTimestamp": created,
                },
                "spec": {
                    "model": {"uri": "pvc://models/base"},
                    "replicas": replicas,
                    "lora": {"claims": ["adapters"]},
                    **spec,
                },
            }
        )
        self.put(engine)
        return engine

    def slot(
        self, engine: InferenceEngine, index: int, node: str = "", *, ready: bool = True, size: int = 1
    ) -> PodView | None:
        """A slot's Deployment, with a pod when its size is 1."""
        version, created = self._next()
        space, name = engine.metadata.namespace, engine.metadata.name
        labels = {"sluice.dev/engine": name, "sluice.dev/slot": str(index)}
        self.put(
            SlotView(
                key=Key("Deployment", space, f"{name}-{index}"),
                uid=f"slot-{name}-{index}-{version}",
                resource_version=version,
                created=created,
                owner=Owner("InferenceEngine", name, engine.metadata.uid),
                labels=labels,
                engine=name,
                index=index,
                size=size,
                template=template_of(engine),
            )
        )
        if not size:
            return None
        version, created = self._next()
        pod = PodView(
            key=Key("Pod", space, f"{name}-{index}-x"),
            uid=f"pod-{name}-{index}-{version}",
            resource_version=version,
            created=created,
            owner=Owner("ReplicaSet", f"{name}-{index}-rs", f"rs-{name}-{index}"),
            labels=labels,
            requests={GPU: engine.spec.resources.gpus, "cpu": 1000, "memory": 1 << 30},
            node=node,
            running=bool(node),
            ready=bool(node) and ready,
        )
        self.put(pod)
        return pod

    def report(self, pod: PodView, in_flight: int, *, draining: bool = False, quiet: float = 0.0) -> None:
        report = EngineReport(
            sequence=1, serving=not draining, draining=draining, in_flight=in_flight, quiet_seconds=quiet
        )
        self.store.report(pod.uid, Reported(report, NOW))

    def job(
        self,
        name: str,
        gpus: int = 1,
        namespace: str = "team",
        outcomes: tuple[AttemptOutcome, ...] = (PREPARED,),
        **spec: Any,
    ) -> FineTuneJob:
        version, created = self._next()
        for claim in ("models", "datasets", "adapters"):
            self.put(
                ClaimView(
                    key=Key("PersistentVolumeClaim", namespace, claim),
                    uid=f"pvc-{namespace}-{claim}",
                    resource_version=self._next()[0],
                    created=created,
                    access_modes=("ReadWriteMany",),
                )
            )
        resources = {"gpus": gpus, "memory": "1Gi", **spec.pop("resources", {})}
        job = FineTuneJob.model_validate(
            {
                "kind": "FineTuneJob",
                "metadata": {
                    "name": name,
                    "namespace": namespace,
                    "uid": f"job{name}-{namespace}",
                    "generation": 1,
                    "resourceVersion": str(version),
                    "creationTimestamp": created,
                    "annotations": {OUTCOMES_ANNOTATION: Outcomes(attempts=outcomes).to_json()},
                },
                "spec": {
                    "model": {"uri": "pvc://models/base"},
                    "dataset": {"uri": "pvc://datasets/rows.jsonl"},
                    "output": {"uri": "pvc://adapters/out"},
                    "scheduling": {"policy": "Preempt"},
                    **spec,
                    "resources": resources,
                },
            }
        )
        self.put(job)
        return job

    def stage_job(
        self, job: FineTuneJob, stage: Stage = Stage.TRAIN, attempt: int = 1, claim: Claim | None = None, **changes: Any
    ) -> StageJobView:
        version, created = self._next()
        name = stage_job_name(job.metadata.name, job.metadata.uid, stage, attempt)
        view = StageJobView(
            key=Key("Job", job.metadata.namespace, name),
            uid=f"{job.metadata.uid}-{stage}-{attempt}-{version}",
            resource_version=version,
            owner=Owner("FineTuneJob", job.metadata.name, job.metadata.uid),
            stage=stage,
            attempt=attempt,
            claim=claim,
            **{"created": created, **changes},
        )
        self.store.put(view, seen=view.seen)
        return view

    def claim(self, node: str, *borrowed: SlotRef, gpus: int = 1, term: int = 1) -> Claim:
        return Claim(pool="default", resource=GPU, node=node, gpus=gpus, borrowed=borrowed, term=term)

    def trainer_pod(self, stage_job: StageJobView, node: str = "", **changes: Any) -> PodView:
        """The pod of a training Job: gated unless it is on a node."""
        version, created = self._next()
        assert stage_job.owner is not None
        gpus = stage_job.claim.gpus if stage_job.claim else 0
        pod = PodView(
            key=Key("Pod", stage_job.key.namespace, f"{stage_job.key.name}-x"),
            uid=f"pod-{stage_job.uid}",
            resource_version=version,
            owner=Owner("Job", stage_job.key.name, stage_job.uid),
            labels={"sluice.dev/job": stage_job.owner.name, "sluice.dev/stage": stage_job.stage},
            requests={GPU: gpus, "cpu": 1000, "memory": 1 << 30},
            node=node,
            **{"created": created, "gates": () if node else (SCHEDULING_GATE,), "running": bool(node), **changes},
        )
        self.put(pod)
        return pod

    def stranger(self, node: str, gpus: int, memory: int = 0) -> None:
        version, created = self._next()
        self.put(
            PodView(
                key=Key("Pod", "others", f"stranger-{version}"),
                uid=f"stranger-{version}",
                resource_version=version,
                created=created,
                requests={GPU: gpus, "memory": memory},
                node=node,
                running=True,
            )
        )


def parse(text: str) -> Town:
    """Read the notation of this module's first lines."""
    town = Town()
    parts = [part.strip().split(": ", 1) for part in text.split("|")]
    free: dict[str, int] = {}
    for name, words in parts:
        if name == "pool":
            free = {town.node(int(gpus)).key.name: int(gpus) for gpus in re.findall(r"\d+", words)}
        elif name == "strangers":
            for gpus, node in re.findall(r"(\d+) on (n\d+)", words):
                town.stranger(node, int(gpus))
                free[node] -= int(gpus)
    for name, words in sorted(parts, key=lambda part: " on n" not in part[1]):
        if "needs" in words:
            _parse_job(town, name, words, free)
    for name, words in parts:
        if "replicas" in words:
            _parse_engine(town, name, words, free)
    return town


def _number(words: str, name: str, default: int) -> int:
    found = re.search(rf"{name} (-?\d+)", words)
    return int(found.group(1)) if found else default


def _parse_engine(town: Town, name: str, words: str, free: dict[str, int]) -> None:
    replicas = int(words.split(" replicas", maxsplit=1)[0])
    gpus = _number(words, "gpus", 1)
    engine = town.engine(
        name,
        replicas,
        resources={"gpus": gpus},
        preemption={
            "policy": "Never" if "never" in words else "ScaleDown",
            "minReplicas": _number(words, "floor", 0),
            "priority": _number(words, "priority", 0),
            "lendTo": "Anywhere" if "anywhere" in words else "SameNamespace",
        },
    )
    lent = {
        slot.index
        for view in town.world.claiming.values()
        if view.claim
        for slot in view.claim.borrowed
        if slot.engine == name
    }
    in_flight = re.search(r"in flight ([\d ]+)", words)
    busy = [int(count) for count in in_flight.group(1).split()] if in_flight else []
    for index in range(replicas):
        if index in lent:
            town.slot(engine, index, size=0)
            continue
        node = next((node for node, left in free.items() if left >= gpus), "")
        if not node:
            continue
        free[node] -= gpus
        pod = town.slot(engine, index, node, ready=index < _number(words, "ready", replicas))
        if pod and index < len(busy):
            town.report(pod, busy[index])


def _parse_job(town: Town, name: str, words: str, free: dict[str, int]) -> None:
    gpus = _number(words, "needs", 1)
    namespace = re.search(r"in ([a-z]+)", words)
    job = town.job(
        name,
        gpus,
        namespace.group(1) if namespace else "team",
        scheduling={
            "policy": "Queue" if "queue" in words else "Preempt",
            "priority": _number(words, "priority", 0),
            **({"interruption": YIELDS} if "yields" in words else {}),
        },
    )
    held = re.search(r"(?:takes ([\w/ ]+) )?on (n\d+)", words)
    if held:
        refs = [
            SlotRef(namespace="team", engine=slot.split("/")[0], index=int(slot.split("/")[1]))
            for slot in (held.group(1) or "").split()
        ]
        stage_job = town.stage_job(job, claim=town.claim(held.group(2), *refs, gpus=gpus))
        town.trainer_pod(stage_job, held.group(2))
        free[held.group(2)] -= gpus


def allocated(town: Town, now: datetime = NOW) -> Allocation:
    pool = find_pool(town.world, "default")
    assert pool is not None
    return allocate(town.world, pool, now)


def describe(allocation: Allocation) -> str:
    """`a takes chat/1; b takes n1 from c; d waits EngineAtFloor`, by name."""
    said = {
        key.name: "takes "
        + (" ".join(map(str, claim.borrowed)) or claim.node)
        + (f" from {' '.join(ref.job for ref in claim.displaced)}" if claim.displaced else "")
        for key, claim in allocation.claims.items()
    }
    said.update({key.name: f"waits {wait.reason}" for key, wait in allocation.waits.items()})
    return "; ".join(f"{name} {what}" for name, what in sorted(said.items()))


__all__ = ["GPU", "NOW", "PREPARED", "YIELDS", "Town", "allocated", "describe", "key_of", "parse", "pool_key"]
