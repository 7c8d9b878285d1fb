"""Two namespaces that don't trust each other: a team that serves and trains, and a user who has `edit` in the other.

The user does what hurt others before; the faults' numbers are those of docs/threat-model.md. With the chart's admission
policy most of it is refused; without it, the planner believes none of it. Either way the team keeps its replicas, and
its job gets a GPU.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from dev.cluster.control_plane import ControlPlane
from sluice_api.meta import API_VERSION, stage_job_name
from sluice_api.stages import Stage
from tests.integration.claim_scene import MODEL, VOLUME, ClaimScene, claim_scene, outcomes_of_prepare
from tests.integration.conftest import MakeOperator
from tests.integration.nodes import MERGE_PATCH, Nodes, add_volume
from tests.integration.progress_scene import Kube, until
from tests.integration.tenants import RBAC, RELEASE, Tenant, as_the_operator, tenant

pytestmark = pytest.mark.integration

Body = dict[str, Any]
SLUICE, BATCH, CORE, APPS = f"apis/{API_VERSION}", "apis/batch/v1", "api/v1", "apis/apps/v1"
JUNK = "x" * 250_000
SLEEPS: Body = {"containers": [{"name": "main", "image": "nothing"}], "restartPolicy": "Never"}
TAKES_A_GPU: Body = {
    "containers": [{"name": "main", "image": "nothing", "resources": {"limits": {"nvidia.com/gpu": "1"}}}],
    "terminationGracePeriodSeconds": 1_000_000,
}


@dataclass(frozen=True)
class Cluster:
    """The team and its neighbour, on one node of three GPUs, of which the team's engine has two."""

    team: ClaimScene
    hostile: Tenant
    node: str
    policy: bool

    async def tries(self, method: str, path: str, body: Body, kind: str = "application/json") -> None:
        """The user does something that the policy refuses, and that nothing else does."""
        said = await self.hostile.does(method, path, body, kind)
        if self.policy:
            assert ": 403 " in said, said or f"accepted: {method} {path}"
            assert "ValidatingAdmissionPolicy" in said
        else:
            assert said == ""

    async def job(self, name: str, annotations: Body | None = None, **scheduling: Any) -> Body:
        """A job of the user's, as the user makes it, with annotations that only Sluice would have written."""
        spec = {
            "model": {"uri": MODEL},
            "dataset": {"uri": "pvc://volume/rows.jsonl"},
            "output": {"uri": "pvc://volume/out"},
            "resources": {"memory": "100Mi", "cpu": "10m"},
            "scheduling": scheduling,
        }
        metadata = {"name": name, "annotations": annotations or {}}
        body = {"apiVersion": API_VERSION, "kind": "FineTuneJob", "metadata": metadata, "spec": spec}
        maker = self.hostile.admin if annotations else self.hostile.kube
        return await maker.call("POST", self.hostile.path(SLUICE, "finetunejobs"), body)

    async def team_is_unharmed(self, name: str = "tone", **terms: Any) -> None:
        """The team's replicas have all served all the while, and its next job gets a GPU."""
        assert disturbed(self.team) == []
        await self.team.job(name, **terms)
        await self.team.running(name)
        await self.team.finishes(name)
        await self.team.serves(2)


def disturbed(scene: ClaimScene) -> list[str]:
    """Slots that were not at their full size, or gone, at any time, unless the team's own job took them."""
    return sorted(
        {v.name for v in scene.history.ordered("deployments") if v.gone or not v.body["spec"]["replicas"]}
        | {
            f"chat is {slot['state']}"
            for v in scene.history.ordered("inferenceengines")
            for slot in v.body.get("status", {}).get("slots", [])
            if slot["state"] not in ("Waiting", "Starting", "Serving")
        }
    )


@pytest_asyncio.fixture
async def cluster(
    control_plane: ControlPlane,
    kube: Kube,
    namespace: str,
    nodes: Nodes,
    operator: MakeOperator,
    policy: bool,
    tmp_path: Path,
) -> AsyncIterator[Cluster]:
    """The operator runs as the chart's account, with the chart's rights."""
    async with (
        tenant(control_plane, kube, f"hostile-{namespace}") as hostile,
        claim_scene(control_plane, kube, namespace) as team,
    ):
        node = await nodes.add(f"{namespace}-n1", gpus=3)
        await add_volume(kube, hostile.namespace, VOLUME)
        served = f"{namespace},{hostile.namespace}"
        account = as_the_operator(control_plane, tmp_path)
        operator(kubeconfig=account, namespace=RELEASE, watch_namespaces=served, lease_seconds=6)
        await team.engine("chat", replicas=2)
        await team.serves(2)
        yield Cluster(team, hostile, node, policy)
        await kube.call("DELETE", f"/api/v1/persistentvolumes/{hostile.namespace}-{VOLUME}")


def owned(job: Body) -> list[Body]:
    """A reference to a custom resource as to the controller."""
    metadata = job["metadata"]
    owner = {"apiVersion": job["apiVersion"], "kind": job["kind"], "name": metadata["name"], "uid": metadata["uid"]}
    return [{**owner, "controller": True, "blockOwnerDeletion": True}]


def forged(cluster: Cluster, job: Body, name: str, **place: Any) -> Body:
    """A training Job of somebody's job that claims GPUs, as the operator makes it; its pod only sleeps."""
    labels = {"sluice.dev/job": job["metadata"]["name"], "sluice.dev/stage": "Train", "sluice.dev/attempt": "1"}
    claim = {
        "pool": "default",
        "resource": "nvidia.com/gpu",
        "gpus": 2,
        "term": 2**62,
        "places": [{"node": cluster.node, **place}],
    }
    return {
        "metadata": {
            "name": name,
            "labels": labels,
            "annotations": {"sluice.dev/claim": json.dumps(claim)},
            "ownerReferences": owned(job),
        },
        "spec": {"template": {"metadata": {"labels": labels}, "spec": SLEEPS}, "backoffLimit": 0},
    }


def of_the_team(cluster: Cluster) -> list[Body]:
    """References to the replicas of the team."""
    return [{"namespace": cluster.team.namespace, "engine": "chat", "index": index} for index in range(2)]


async def test_a_forged_claim_takes_nothing(cluster: Cluster) -> None:
    """C1: under a name of its own, under that of the attempt, and by what a CronJob makes."""
    mine = await cluster.job("x", priority=-1000)
    place, jobs = cluster.hostile.path(BATCH, "jobs"), []
    right = stage_job_name("x", mine["metadata"]["uid"], Stage.TRAIN, 1)
    for name in ("forged", right):
        jobs.append(forged(cluster, mine, name, borrowed=of_the_team(cluster)))
        await cluster.tries("POST", place, jobs[-1])
    template = {"metadata": {**jobs[0]["metadata"], "name": ""}, "spec": jobs[0]["spec"]}
    cron = {"metadata": {"name": "forged"}, "spec": {"schedule": "* * * * *", "jobTemplate": template}}
    await cluster.tries("POST", cluster.hostile.path(BATCH, "cronjobs"), cron)
    if not cluster.policy:
        await take_effect(cluster, place, {"forged", right})
    await cluster.team_is_unharmed()


async def take_effect(cluster: Cluster, place: str, names: set[str]) -> None:
    """Wait until a pod of each of the user's objects is on a node, from when on what it says would hold.

    Those that Sluice has removed by then are not waited for.
    """

    async def so() -> bool:
        pods = (await cluster.hostile.kube.call("GET", cluster.hostile.path(CORE, "pods")))["items"]
        there = {found["metadata"]["name"] for found in (await cluster.hostile.kube.call("GET", place))["items"]}
        return sum(1 for pod in pods if pod["spec"].get("nodeName")) >= len(there & names)

    await until(so)


async def test_owner_of_another_namespace_is_ignored(cluster: Cluster) -> None:
    """H7: a training Job and a slot that name the team's own objects as their owners, by uid."""
    await cluster.team.job("tone")
    await cluster.team.running("tone")
    tone, chat = [
        await cluster.team.kube.call("GET", cluster.team.path(*place))
        for place in (("finetunejobs", "tone"), ("inferenceengines", "chat"))
    ]
    await cluster.tries("POST", cluster.hostile.path(BATCH, "jobs"), forged(cluster, tone, "foreign"))
    labels = {"sluice.dev/engine": "chat", "sluice.dev/slot": "0"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": SLEEPS["containers"]}}
    spec = {"replicas": 0, "selector": {"matchLabels": labels}, "template": template}
    metadata = {"name": "foreign-0", "labels": labels, "ownerReferences": owned(chat)}
    slot = {"metadata": metadata, "spec": spec}
    await cluster.tries("POST", cluster.hostile.path(APPS, "deployments"), slot)
    await cluster.team.finishes("tone")
    await cluster.team.finishes("tone", Stage.EXPORT)
    await cluster.team.succeeds("tone")
    await cluster.team.serves(2)
    assert disturbed(cluster.team) == []


async def test_forged_scale_up_pod_does_not_count_as_free(cluster: Cluster) -> None:
    """M7: the third GPU is taken by a pod that never goes; a job that needs one borrows it from the engine."""
    mine = await cluster.job("x", priority=-1000)
    metadata = {"name": "x-scale-up-0", "labels": {"sluice.dev/scale-up": "default"}, "ownerReferences": owned(mine)}
    await cluster.tries("POST", cluster.hostile.path(CORE, "pods"), {"metadata": metadata, "spec": TAKES_A_GPU})
    if cluster.policy:
        del metadata["labels"]
        await cluster.hostile.kube.call(
            "POST", cluster.hostile.path(CORE, "pods"), {"metadata": metadata, "spec": TAKES_A_GPU}
        )
    await take_effect(cluster, cluster.hostile.path(CORE, "pods"), {"x-scale-up-0"})
    await cluster.team_is_unharmed()


PREPARED = {"sluice.dev/outcomes": outcomes_of_prepare().to_json()}
"""What Sluice writes once a job's data was prepared."""
FAR = "9999-12-31T23:59:59Z"


async def test_extreme_fields_end_no_decision(cluster: Cluster) -> None:
    """C2: what the schema takes, and what it refuses, stops nobody else."""
    late: list[Body] = [{"notBefore": FAR, "queueDeadlineSeconds": 31536000}, {"notBefore": FAR, "scaleUpFirst": {}}]
    for number, scheduling in enumerate(late):
        await refused_or_harmless(cluster.job(f"late-{number}", PREPARED, **scheduling))
    engine: Body = {
        "apiVersion": API_VERSION,
        "kind": "InferenceEngine",
        "metadata": {"name": "full"},
        "spec": {"model": {"uri": MODEL}, "serving": {"gpuMemoryUtilization": "1e9999999"}},
    }
    await refused_or_harmless(
        cluster.hostile.kube.call("POST", cluster.hostile.path(SLUICE, "inferenceengines"), engine)
    )
    await cluster.team_is_unharmed()


async def refused_or_harmless(request: Awaitable[Body]) -> None:
    """A schema may refuse it, and nothing else does."""
    (answer,) = await asyncio.gather(request, return_exceptions=True)
    assert not isinstance(answer, BaseException) or ": 422 " in str(answer)


async def test_poisoned_annotations_end_no_decision(cluster: Cluster) -> None:
    """C2, C3, M14: times without a zone and of the last year, 250 kB, and a claim of 10^12 pods."""
    place = cluster.hostile.path(SLUICE, "finetunejobs")
    prepared = json.loads(outcomes_of_prepare().to_json())
    for number, time in enumerate(("2026-01-01T00:00:00", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z")):
        (done,) = prepared["attempts"]
        text = json.dumps({"attempts": [{**done, "startedAt": time, "endedAt": time}]})
        await cluster.job(f"timed-{number}", priority=1000)
        body = {"metadata": {"annotations": {"sluice.dev/outcomes": text}}}
        await cluster.tries("PATCH", f"{place}/timed-{number}", body, MERGE_PATCH)
    await cluster.job("junk")
    for number in range(3):
        body = {"metadata": {"annotations": {"sluice.dev/outcomes": f"{number}{JUNK}"}}}
        await cluster.tries("PATCH", f"{place}/junk", body, MERGE_PATCH)
    mine = await cluster.job("many", priority=-1000)
    right = stage_job_name("many", mine["metadata"]["uid"], Stage.TRAIN, 1)
    await cluster.tries("POST", cluster.hostile.path(BATCH, "jobs"), forged(cluster, mine, right, pods=10**12))
    for number in range(4):  # what is not Sluice's is stored, whatever its size, and not kept
        metadata = {"name": f"large-{number}", "annotations": {"note": JUNK}}
        spec = {"engine": "chat", "source": {"uri": "pvc://volume/x"}}
        adapter: Body = {"apiVersion": API_VERSION, "kind": "Adapter", "metadata": metadata, "spec": spec}
        await cluster.hostile.kube.call("POST", cluster.hostile.path(SLUICE, "adapters"), adapter)
    await cluster.team_is_unharmed()


async def test_job_with_the_next_attempts_name_holds_no_gpus(cluster: Cluster) -> None:
    """H1: nothing of it is Sluice's, so no policy refuses it; the user's own job waits for it, and nobody else does."""
    mine = await cluster.job("x", PREPARED, priority=1000, notBefore="2199-01-01T00:00:00Z")
    name = stage_job_name("x", mine["metadata"]["uid"], Stage.TRAIN, 1)
    in_the_way = {"metadata": {"name": name}, "spec": {"template": {"spec": SLEEPS}}}
    await cluster.hostile.kube.call("POST", cluster.hostile.path(BATCH, "jobs"), in_the_way)
    place = cluster.hostile.path(SLUICE, "finetunejobs", "x")
    await cluster.hostile.kube.call("PATCH", place, {"spec": {"scheduling": {"notBefore": None}}}, MERGE_PATCH)
    await cluster.team.job("tone", policy="Queue")
    await cluster.team.running("tone")


async def test_engine_neither_adopts_nor_deletes_objects_of_others(cluster: Cluster) -> None:
    """H5: a user who may write no Roles names an engine so that its objects would be those of an administrator."""
    hostile = cluster.hostile
    there: list[tuple[str, str, Body]] = [
        (hostile.path(CORE, "services"), "db", {"spec": {"selector": {"app": "db"}, "ports": [{"port": 5432}]}}),
        (hostile.path(CORE, "serviceaccounts"), "db-agent", {}),
        (hostile.path(f"apis/{RBAC}/v1", "roles"), "db-agent", {"rules": []}),
    ]
    before = [await hostile.admin.call("POST", at, {"metadata": {"name": name}, **body}) for at, name, body in there]
    spec = {"model": {"uri": MODEL}, "resources": {"gpus": 1, "memory": "100Mi", "cpu": "10m"}}
    engine = {"apiVersion": API_VERSION, "kind": "InferenceEngine", "metadata": {"name": "db"}, "spec": spec}
    place = hostile.path(SLUICE, "inferenceengines")
    await hostile.kube.call("POST", place, engine)

    async def is_refused() -> bool:
        status = (await hostile.kube.call("GET", f"{place}/db")).get("status") or {}
        return any(told["reason"] == "NameTaken" for told in status.get("conditions") or ())

    async def is_gone() -> bool:
        return not (await hostile.kube.call("GET", place))["items"]

    await until(is_refused)
    await hostile.kube.call("DELETE", f"{place}/db?propagationPolicy=Foreground")
    await until(is_gone)
    after = [await hostile.admin.call("GET", f"{at}/{name}") for at, name, _ in there]
    assert [body["metadata"]["resourceVersion"] for body in after] == [
        body["metadata"]["resourceVersion"] for body in before
    ]
    await cluster.team_is_unharmed()


async def test_priority_class_sluice_training_is_refused_to_tenants(cluster: Cluster) -> None:
    """M2. Without the policy such a pod is accepted, and takes the GPU of a replica that comes back."""
    stranger = {"metadata": {"name": "stranger"}, "spec": {**TAKES_A_GPU, "priorityClassName": "sluice-training"}}
    await cluster.tries("POST", cluster.hostile.path(CORE, "pods"), stranger)
    if cluster.policy:
        await cluster.team_is_unharmed()
