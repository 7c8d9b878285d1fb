"""A namespace in which the whole claim cycle happens, but for what pods would do inside."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from dev.cluster.control_plane import ControlPlane
from sluice_api.claim import AttemptOutcome, Claim, Outcomes
from sluice_api.meta import (
    API_VERSION,
    ATTEMPT_LABEL,
    CLAIM_ANNOTATION,
    DEFAULT_POOL,
    INDEX_LABEL,
    JOB_LABEL,
    OUTCOMES_ANNOTATION,
    SCHEDULING_GATE,
    STAGE_LABEL,
)
from sluice_api.stages import ExportResult, PrepareResult, Stage, StageOutcome, TrainResult
from tests.integration.audit import AuditLog, Write
from tests.integration.fake_kubelet import FakeKubelet
from tests.integration.history import SLUICE, History, Version
from tests.integration.nodes import MERGE_PATCH, finish_pod
from tests.integration.progress_scene import Kube, until

Body = dict[str, Any]

VOLUME = "volume"
MODEL = f"pvc://{VOLUME}/tiny"
PREPARED = StageOutcome(
    reason="Done",
    prepare=PrepareResult(
        rows=90, validation_rows=10, refused_rows=0, tokens=9000, loss_tokens=4000, longest_row=100, steps=30
    ),
)
TRAINED = StageOutcome(reason="Done", train=TrainResult(step=30, total_steps=30, checkpoint_step=30))
REQUEUED = StageOutcome(reason="Requeued", train=TrainResult(step=7, total_steps=30, checkpoint_step=7))
EXPORTED = StageOutcome(
    reason="Done",
    export=ExportResult(uri=f"pvc://{VOLUME}/out/export", digest="sha256:" + "0" * 64, rank=16, size_bytes=1),
)


@dataclass
class ClaimScene:
    """One namespace, all that ever happens in it, and a kubelet that obeys the test."""

    kube: Kube
    namespace: str
    history: History
    kubelet: FakeKubelet
    audit: AuditLog
    _volumes: list[str] = field(default_factory=list)

    def path(self, plural: str, name: str = "") -> str:
        """Where a custom resource is."""
        return f"{SLUICE}/namespaces/{self.namespace}/{plural}{f'/{name}' if name else ''}"

    async def volume(self) -> None:
        """A claim that any number of nodes may mount, and its volume."""
        name = f"{self.namespace}-{VOLUME}"
        shared: Body = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
        spec = {**shared, "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/nowhere"}}
        await self.kube.call("POST", "/api/v1/persistentvolumes", {"metadata": {"name": name}, "spec": spec})
        self._volumes.append(name)
        spec = {**shared, "resources": {"requests": {"storage": "1Gi"}}, "volumeName": name}
        place = f"/api/v1/namespaces/{self.namespace}/persistentvolumeclaims"
        await self.kube.call("POST", place, {"metadata": {"name": VOLUME}, "spec": spec})

    async def engine(
        self,
        name: str = "chat",
        replicas: int = 2,
        floor: int = 1,
        drain: int = 0,
        *,
        pool: str = DEFAULT_POOL,
        utilization: str = "0.90",
        **terms: Any,
    ) -> None:
        """An engine of one GPU a slot, that lends at once what came back."""
        lends = {"policy": "ScaleDown", "minReplicas": floor, "drainTimeoutSeconds": drain, "coolDownSeconds": 0}
        spec = {
            "model": {"uri": MODEL},
            "replicas": replicas,
            "resources": {"gpus": 1, "memory": "100Mi", "cpu": "10m", "pool": pool},
            "serving": {"gpuMemoryUtilization": utilization},
            "lora": {"volumeClaims": [VOLUME]},
            "preemption": {**lends, **terms},
        }
        body = {"apiVersion": API_VERSION, "kind": "InferenceEngine", "metadata": {"name": name}, "spec": spec}
        await self.kube.call("POST", self.path("inferenceengines"), body)

    async def job(
        self,
        name: str,
        policy: str = "Preempt",
        priority: int = 0,
        publish: str = "",
        *,
        gpus: int = 1,
        nodes: int = 1,
        pool: str = DEFAULT_POOL,
        prepared: bool = True,
        **scheduling: Any,
    ) -> Body:
        """A job; `prepared`: its data was prepared before, and the job's annotation says so."""
        spec: Body = {
            "model": {"uri": MODEL},
            "dataset": {"uri": f"pvc://{VOLUME}/rows.jsonl"},
            "output": {"uri": f"pvc://{VOLUME}/out"},
            "resources": {"gpus": gpus, "nodes": nodes, "pool": pool, "memory": "100Mi", "cpu": "10m"},
            "scheduling": {"policy": policy, "priority": priority, **scheduling},
        }
        if publish:
            spec["publish"] = {"engine": publish, "name": name}
        metadata: Body = {"name": name}
        if prepared:
            metadata["annotations"] = {OUTCOMES_ANNOTATION: outcomes_of_prepare().to_json()}
        body = {"apiVersion": API_VERSION, "kind": "FineTuneJob", "metadata": metadata, "spec": spec}
        return await self.kube.call("POST", self.path("finetunejobs"), body)

    async def patch(self, plural: str, name: str, body: Body) -> Body:
        """What a user changes in a custom resource."""
        return await self.kube.call("PATCH", self.path(plural, name), body, MERGE_PATCH)

    async def scale(self, engine: str, replicas: int) -> None:
        """What an autoscaler writes."""
        body = {"spec": {"replicas": replicas}}
        await self.kube.call("PATCH", f"{self.path('inferenceengines', engine)}/scale", body, MERGE_PATCH)

    def stage_jobs(self, job: str, stage: Stage = Stage.TRAIN) -> list[Body]:
        """The Jobs of a stage that are there, by attempt."""
        found = (j for j in self.history.now["jobs"].values() if is_of(j, job, stage))
        return sorted(found, key=lambda j: int(j["metadata"]["labels"][ATTEMPT_LABEL]))

    def pod(self, job: str, stage: Stage = Stage.TRAIN, attempt: int = 1, index: int = 0) -> Body | None:
        """The pod of an attempt, if it is there and not going."""
        for pod in self.history.now["pods"].values():
            labels = pod["metadata"].get("labels", {})
            place = labels.get(ATTEMPT_LABEL), labels.get(INDEX_LABEL, "0")
            if is_of(pod, job, stage) and place == (str(attempt), str(index)) and not is_going(pod):
                return pod
        return None

    async def pod_of(self, job: str, stage: Stage = Stage.TRAIN, attempt: int = 1) -> Body:
        """The pod of an attempt, once it is there."""
        return await self.history.until(lambda: self.pod(job, stage, attempt), f"{job} has a pod for {stage}")

    async def running(self, job: str, stage: Stage = Stage.TRAIN, attempt: int = 1, index: int = 0) -> Body:
        """The pod of an attempt, once it runs."""

        def runs() -> Body | None:
            pod = self.pod(job, stage, attempt, index)
            return pod if pod and pod["status"]["phase"] == "Running" else None

        return await self.history.until(runs, f"attempt {attempt} to {stage} {job} runs")

    async def finishes(
        self, job: str, stage: Stage = Stage.TRAIN, attempt: int = 1, *, outcome: StageOutcome | None = None
    ) -> None:
        """Have the running pod of a stage end, well if nothing else is said."""
        done = {Stage.PREPARE: PREPARED, Stage.TRAIN: TRAINED, Stage.EXPORT: EXPORTED}[stage]
        pod = await self.running(job, stage, attempt)
        code = 0 if outcome is None else 75
        await finish_pod(self.kube, pod, code, (outcome or done).to_json())

    def sizes(self, engine: str = "chat") -> dict[str, int]:
        """Of how many pods each slot is to be."""
        found = self.history.now["deployments"].items()
        return {name: d["spec"]["replicas"] for name, d in sorted(found) if name.rpartition("-")[0] == engine}

    def ready(self, engine: str = "chat") -> int:
        """How many slots answer."""
        return sum(1 for pod in self.history.now["pods"].values() if is_slot(pod, engine) and is_ready(pod))

    async def serves(self, slots: int, engine: str = "chat") -> None:
        """Wait until so many slots answer and the engine's status says so."""

        def all_there() -> bool:
            return self.ready(engine) == slots and self.status("inferenceengines", engine).get("readyReplicas") == slots

        await self.history.until(all_there, f"{engine} serves on {slots} slots")

    def status(self, plural: str, name: str) -> Body:
        """What a custom resource's status says."""
        return dict(self.history.now[plural].get(name, {}).get("status") or {})

    def waits_for(self, job: str) -> tuple[str, str]:
        """Reason and message of the condition that is not true yet."""
        for found in self.status("finetunejobs", job).get("conditions") or ():
            if found["status"] == "False":
                return found["reason"], found["message"]
        return "", ""

    async def job_says(self, job: str, *reasons: str) -> str:
        """The message of a job's condition, once it has one of these reasons."""

        def said() -> str | None:
            reason, message = self.waits_for(job)
            return (message or reason) if reason in reasons else None

        return await self.history.until(said, f"{job} says {' or '.join(reasons)}")

    async def succeeds(self, job: str) -> None:
        """Wait until a job is complete."""

        def done() -> bool:
            return self.status("finetunejobs", job).get("summary") == "Succeeded"

        await self.history.until(done, f"{job} succeeds")

    def lent(self, engine: str = "chat") -> int:
        """How many slots the engine's status says are lent."""
        return int(self.status("inferenceengines", engine).get("lent", 0))

    def writes(self, user: str = "") -> list[Write]:
        """What operators have written here since the scene began, but for their leases and events."""
        found = self.audit.writes(self.namespace, user=user)
        return [w for w in found if w.resource not in ("leases", "events")]

    async def rounds(self, times: int) -> None:
        """Wait until the operator has listed all and decided anew so often; `resync_seconds` says how soon that is."""
        last = self.audit.lists("finetunejobs") + times

        async def listed() -> bool:
            return self.audit.lists("finetunejobs") >= last

        await until(listed)

    async def settles(self) -> list[Write]:
        """Wait for a round in which nothing is written; all that was written before."""
        while True:
            before = self.writes()
            await self.rounds(1)
            if len(self.writes()) == len(before):
                return before

    # What must hold at every moment of every history

    def broken_promises(self) -> list[str]:
        """Every moment at which a promise was broken; the tests say: none."""
        return [
            *self._stopped_too_early(),
            *self._two_trainers(),
            *self._attempts_made_twice(),
        ]

    def _stopped_too_early(self) -> list[str]:
        """A slot goes to 0 only when a trainer that borrows it is ungated, tied to the node and nominated."""
        found = []
        world: dict[tuple[str, str], Body] = {}
        for version in self.history.ordered():
            place = (version.plural, version.name)
            before = world.get(place)
            if version.gone:
                world.pop(place, None)
            else:
                world[place] = version.body
            if not _is_stop(version, before) or not self._is_wanted(version, world):
                continue
            pods = [p for p in _of(world, "pods") if claim_of_pod(p, world) and borrows(p, version.name, world)]
            if not any(is_bindable(pod) for pod in pods):
                found.append(f"{version.name} was stopped at {version.revision} before its trainer could be bound")
        return found

    def _is_wanted(self, slot: Version, world: dict[tuple[str, str], Body]) -> bool:
        """Whether its engine still asks for as many slots as there are: a smaller engine may stop some."""
        engine = world.get(("inferenceengines", slot.name.rpartition("-")[0]))
        slots = [d for (plural, name), d in world.items() if plural == "deployments" and _same_engine(name, slot.name)]
        return engine is not None and int(engine["spec"]["replicas"]) >= len(slots)

    def _two_trainers(self) -> list[str]:
        """Two pods that may train for one job at one time, beyond those of one group."""
        found = []
        world: dict[tuple[str, str], Body] = {}
        for version in self.history.ordered("pods"):
            world.pop((version.plural, version.name), None)
            if not version.gone:
                world[version.plural, version.name] = version.body
            loose: dict[str, list[str]] = {}
            for pod in _of(world, "pods"):
                labels = pod["metadata"].get("labels", {})
                over = pod["status"].get("phase") in ("Succeeded", "Failed")
                if labels.get(STAGE_LABEL) == Stage.TRAIN and not is_gated(pod) and not over:
                    place = f"{labels[JOB_LABEL]}/{labels.get(INDEX_LABEL, 0)}"
                    loose.setdefault(place, []).append(pod["metadata"]["name"])
            found += [f"{job}: {pods} at {version.revision}" for job, pods in loose.items() if len(pods) > 1]
        return found

    def _attempts_made_twice(self) -> list[str]:
        """An attempt whose Job was made a second time after it was deleted."""
        uids: dict[str, set[str]] = {}
        for version in self.history.ordered("jobs"):
            uids.setdefault(version.name, set()).add(version.body["metadata"]["uid"])
        return [f"Job {name} was made {len(found)} times" for name, found in uids.items() if len(found) > 1]


@asynccontextmanager
async def claim_scene(plane: ControlPlane, kube: Kube, namespace: str) -> AsyncIterator[ClaimScene]:
    """An empty scene; when it ends well, every promise was kept all the while."""
    async with History.of(plane, namespace) as history, FakeKubelet.of(kube, history) as kubelet:
        scene = ClaimScene(kube, namespace, history, kubelet, AuditLog.since_now(plane.audit_log))
        await scene.volume()
        try:
            yield scene
            assert scene.broken_promises() == []
        finally:
            for name in scene._volumes:
                await kube.call("DELETE", f"/api/v1/persistentvolumes/{name}")


def outcomes_of_prepare() -> Outcomes:
    """A record in which Prepare is done."""
    now = datetime.now(UTC).replace(microsecond=0)
    done = AttemptOutcome(
        stage=Stage.PREPARE, attempt=1, reason="Done", started_at=now, ended_at=now, prepare=PREPARED.prepare
    )
    return Outcomes(attempts=(done,))


def is_of(body: Body, job: str, stage: Stage) -> bool:
    labels = body["metadata"].get("labels", {})
    return (labels.get(JOB_LABEL), labels.get(STAGE_LABEL)) == (job, stage.value)


def is_going(pod: Body) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def is_slot(pod: Body, engine: str) -> bool:
    return bool(pod["metadata"].get("labels", {}).get("sluice.dev/engine") == engine)


def is_ready(pod: Body) -> bool:
    conditions = pod["status"].get("conditions", [])
    return not is_going(pod) and any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def is_gated(pod: Body) -> bool:
    return any(gate["name"] == SCHEDULING_GATE for gate in pod["spec"].get("schedulingGates") or ())


def is_bindable(pod: Body) -> bool:
    """Gate off, tied to a node, nominated there (or there already)."""
    tied = (pod["spec"].get("nodeSelector") or {}).get("kubernetes.io/hostname")
    there = pod["spec"].get("nodeName") or pod["status"].get("nominatedNodeName")
    return not is_gated(pod) and bool(tied) and there == tied


def claim_of(stage_job: Body) -> Claim | None:
    text = stage_job["metadata"].get("annotations", {}).get(CLAIM_ANNOTATION)
    return Claim.model_validate_json(text) if text else None


def claim_of_pod(pod: Body, world: dict[tuple[str, str], Body]) -> Claim | None:
    for owner in pod["metadata"].get("ownerReferences", ()):
        stage_job = world.get(("jobs", owner["name"]))
        if stage_job is not None:
            return claim_of(stage_job)
    return None


def borrows(pod: Body, slot: str, world: dict[tuple[str, str], Body]) -> bool:
    claim = claim_of_pod(pod, world)
    return claim is not None and any(f"{ref.engine}-{ref.index}" == slot for ref in claim.borrowed)


def borrowed_slots(stage_jobs: Collection[Body]) -> list[str]:
    """The slots that these Jobs borrow, as Deployments are named."""
    claims = [claim for job in stage_jobs if (claim := claim_of(job))]
    return sorted(f"{ref.engine}-{ref.index}" for claim in claims for ref in claim.borrowed)


def _same_engine(slot: str, other: str) -> bool:
    return slot.rpartition("-")[0] == other.rpartition("-")[0]


def _is_stop(version: Version, before: Body | None) -> bool:
    if version.plural != "deployments" or version.gone or before is None:
        return False
    return bool(before["spec"]["replicas"]) and not version.body["spec"]["replicas"]


def _of(world: dict[tuple[str, str], Body], plural: str) -> list[Body]:
    return [body for (kind, _), body in world.items() if kind == plural]
