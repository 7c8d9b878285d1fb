"""A store that is filled in a few words: what there is, without a cluster."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sluice_api.claim import AttemptOutcome, Claim, NodeAllocation, Outcomes, SlotRef
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.meta import (
    ATTEMPT_LABEL,
    DEFAULT_DEVICE_CLASS,
    DEFAULT_GPU_RESOURCE,
    DEFAULT_POOL,
    ENGINE_LABEL,
    INDEX_LABEL,
    JOB_LABEL,
    JOB_NAME_LABEL,
    OUTCOMES_ANNOTATION,
    SCALE_UP_LABEL,
    SCHEDULING_GATE,
    STAGE_LABEL,
    scale_up_name,
    stage_job_name,
)
from sluice_api.reports import EngineReport
from sluice_api.selectors import LabelSelector
from sluice_api.stages import PrepareResult, Stage
from sluice_operator.facts.slots import template_of
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import (
    BudgetView,
    DeviceClaimView,
    Key,
    NamespaceView,
    NodeView,
    Owner,
    PodView,
    SliceView,
    SlotView,
    StageJobView,
    VolumeClaimView,
)
from sluice_operator.observe.world import Reported, World

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
GPU = DEFAULT_GPU_RESOURCE
PREPARED = AttemptOutcome(
    stage=Stage.PREPARE,
    attempt=1,
    reason="Done",
    started_at=NOW - timedelta(minutes=5),
    ended_at=NOW - timedelta(minutes=4),
    prepare=PrepareResult(rows=90, validation_rows=10, refused_rows=0, tokens=4000, loss_tokens=1000, steps=30),
)


class WorldBuilder:
    """A store that is filled in a few words."""

    def __init__(self) -> None:
        self.store = Store()
        self.store.findings.term = 1
        self.clock = NOW - timedelta(hours=2)
        self.version = 0
        self.nodes: list[NodeView] = []
        self.counted_as = GPU
        """By which name claims, and nodes that come, have GPUs."""

    @property
    def world(self) -> World:
        """What is known now."""
        return self.store.world()

    def put(self, *objects: Any) -> None:
        """Take objects in, as a watch would bring them."""
        for thing in objects:
            self.store.put(thing, seen=True)

    def _next(self) -> tuple[int, datetime]:
        self.version += 1
        self.clock += timedelta(seconds=1)
        return self.version, self.clock

    def node(self, gpus: int, memory: int = 64 << 30, labels: dict[str, str] | None = None, **changes: Any) -> NodeView:
        """A node, with n and the next number as its name."""
        version, created = self._next()
        name = f"n{len(self.nodes) + 1}"
        node = NodeView(
            key=Key("Node", "", name),
            uid=f"node-{name}",
            resource_version=version,
            created=created,
            labels={"kubernetes.io/hostname": name, **(labels or {})},
            allocatable={GPU: gpus, "cpu": 32000, "memory": memory, "ephemeral-storage": 1 << 40},
            **changes,
        )
        self.nodes.append(node)
        self.put(node)
        if self.counted_as != GPU:
            self.offers(name, gpus)
        return node

    def pool(self, name: str = DEFAULT_POOL, **spec: Any) -> None:
        """A pool; `default` is there anyhow."""
        version, created = self._next()
        metadata = {"name": name, "uid": f"pool-{name}", "resourceVersion": str(version), "creationTimestamp": created}
        self.put(GPUPool.model_validate({"kind": "GPUPool", "metadata": metadata, "spec": spec}))

    def dra_pool(self, **spec: Any) -> None:
        """The pool `default`, whose GPUs DRA serves, so that two pods can share them: there engines may sleep.

        Slots have no ResourceClaims here: what they have is read off their pods.
        """
        self.pool(sharing={"mode": "DRA"}, **spec)
        self.counted_as = DEFAULT_DEVICE_CLASS
        for node in self.nodes:
            self.offers(node.key.name, node.allocatable[GPU])

    def offers(self, node: str, gpus: int, generation: int = 1, driver: str = DEFAULT_DEVICE_CLASS) -> None:
        """What a driver says of a node."""
        version, created = self._next()
        self.put(
            SliceView(
                key=Key("ResourceSlice", "", f"{node}-{driver}-{generation}"),
                uid=f"slice-{version}",
                resource_version=version,
                created=created,
                node=node,
                driver=driver,
                pool=node,
                generation=generation,
                devices=gpus,
            )
        )

    def has(
        self,
        name: str,
        node: str,
        gpus: int,
        namespace: str = "team",
        owner: Owner | None = None,
        **changes: Any,
    ) -> DeviceClaimView:
        """A ResourceClaim; without a node it is not allocated."""
        version, created = self._next()
        claim = DeviceClaimView(
            key=Key("ResourceClaim", namespace, name),
            uid=f"claim-{namespace}-{name}-{version}",
            resource_version=version,
            created=created,
            owner=owner,
            node=node,
            devices={DEFAULT_DEVICE_CLASS: gpus} if node else {},
            **{"asks": (DEFAULT_DEVICE_CLASS, gpus), **changes},
        )
        self.put(claim)
        return claim

    def namespace(self, name: str, **labels: str) -> None:
        """A namespace and its labels."""
        version, created = self._next()
        key = Key("Namespace", "", name)
        self.put(NamespaceView(key=key, uid=f"ns-{name}", resource_version=version, created=created, labels=labels))

    def engine(self, name: str, replicas: int, namespace: str = "team", **spec: Any) -> InferenceEngine:
        """An engine and the volumes that it names; its slots come one by one."""
        version, created = self._next()
        self.volumes(namespace)
        engine = InferenceEngine.model_validate(
            {
                "kind": "InferenceEngine",
                "metadata": {
                    "name": name,
                    "namespace": namespace,
                    "uid": f"engine-{name}" if namespace == "team" else f"engine-{namespace}-{name}",
                    "generation": 1,
                    "resourceVersion": str(version),
                    "creationTimestamp": created,
                },
                "spec": {
                    "model": {"uri": "pvc://models/base"},
                    "replicas": replicas,
                    "lora": {"volumeClaims": ["adapters"]},
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
            template=template_of(engine),
            node=node,
            running=bool(node),
            ready=bool(node) and ready,
        )
        self.put(pod)
        return pod

    def report(
        self,
        pod: PodView,
        in_flight: int,
        *,
        draining: bool = False,
        quiet: float = 0.0,
        at: datetime = NOW,
        **more: Any,
    ) -> None:
        """What the agent of a slot said."""
        report = EngineReport(
            sequence=1, serving=not draining, draining=draining, in_flight=in_flight, quiet_seconds=quiet, **more
        )
        self.store.findings.report(pod.uid, Reported(report, at))

    def job(
        self,
        name: str,
        gpus: int = 1,
        namespace: str = "team",
        outcomes: tuple[AttemptOutcome, ...] = (PREPARED,),
        **spec: Any,
    ) -> FineTuneJob:
        """A job whose data is prepared, and the volumes that it names."""
        version, created = self._next()
        self.volumes(namespace)
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

    def volumes(self, namespace: str) -> None:
        """The claims that jobs and engines of a namespace name."""
        for claim in ("models", "datasets", "adapters"):
            self.put(
                VolumeClaimView(
                    key=Key("PersistentVolumeClaim", namespace, claim),
                    uid=f"pvc-{namespace}-{claim}",
                    resource_version=self._next()[0],
                    created=self.clock,
                    access_modes=("ReadWriteMany",),
                )
            )

    def stage_job(
        self, job: FineTuneJob, stage: Stage = Stage.TRAIN, attempt: int = 1, claim: Claim | None = None, **changes: Any
    ) -> StageJobView:
        """A Job of a stage, with a claim if it trains."""
        version, created = self._next()
        name = stage_job_name(job.metadata.name, job.metadata.uid, stage, attempt)
        view = StageJobView(
            key=Key("Job", job.metadata.namespace, name),
            uid=f"{job.metadata.uid}-{stage}-{attempt}-{version}",
            resource_version=version,
            owner=Owner("FineTuneJob", job.metadata.name, job.metadata.uid),
            labels={JOB_LABEL: job.metadata.name, STAGE_LABEL: stage, ATTEMPT_LABEL: str(attempt)},
            stage=stage,
            attempt=attempt,
            claim=claim,
            **{"created": created, **changes},
        )
        self.store.put(view, seen=view.seen)
        return view

    def budget(self, engine: str, allowed: int, namespace: str = "team") -> None:
        """A PodDisruptionBudget of an engine's pods."""
        version, created = self._next()
        key = Key("PodDisruptionBudget", namespace, f"{engine}-budget")
        pods = LabelSelector(match_labels={ENGINE_LABEL: engine})
        self.put(
            BudgetView(
                key=key, uid=f"budget-{version}", resource_version=version, created=created, pods=pods, allowed=allowed
            )
        )

    def claim(self, nodes: str | Sequence[str], *borrowed: SlotRef, gpus: int = 1, term: int = 1) -> Claim:
        """A claim of one pod on each of some nodes; on several, the first slot is lent on the first, and so on."""
        names = [nodes] if isinstance(nodes, str) else list(nodes)
        slots = [borrowed] if len(names) == 1 else [borrowed[i : i + 1] for i in range(len(names))]
        places = tuple(NodeAllocation(node=name, borrowed=tuple(own)) for name, own in zip(names, slots, strict=True))
        return Claim(pool="default", resource=self.counted_as, gpus=gpus, places=places, term=term)

    def trainer_pod(self, stage_job: StageJobView, node: str = "", index: int = 0, **changes: Any) -> PodView:
        """A pod of a training Job: gated unless it is on a node."""
        version, created = self._next()
        gpus = stage_job.claim.gpus if stage_job.claim else 0
        pod = PodView(
            key=Key("Pod", stage_job.key.namespace, f"{stage_job.key.name}-{index}-x"),
            uid=f"pod-{stage_job.uid}-{index}",
            resource_version=version,
            owner=Owner("Job", stage_job.key.name, stage_job.uid),
            labels={
                **stage_job.labels,
                JOB_NAME_LABEL: stage_job.key.name,
                INDEX_LABEL: str(index),
            },
            requests={GPU: gpus, "cpu": 1000, "memory": 1 << 30},
            node=node,
            **{"created": created, "gates": () if node else (SCHEDULING_GATE,), "running": bool(node), **changes},
        )
        self.put(pod)
        return pod

    def scale_up_pod(self, job: FineTuneJob, index: int = 0, node: str = "") -> PodView:
        """A pod by which a job asks for a node; on a node, if it has got one."""
        version, created = self._next()
        pod = PodView(
            key=Key("Pod", job.metadata.namespace, scale_up_name(job.metadata.name, job.metadata.uid, index)),
            uid=f"scale-up-{version}",
            resource_version=version,
            created=created,
            owner=Owner("FineTuneJob", job.metadata.name, job.metadata.uid),
            labels={SCALE_UP_LABEL: job.spec.resources.pool},
            goes_at_once=True,
            requests={GPU: job.spec.resources.gpus, "cpu": 1000, "memory": 1 << 30},
            node=node,
        )
        self.put(pod)
        return pod

    def stranger(self, node: str, gpus: int, memory: int = 0) -> None:
        """Somebody else's pod."""
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
