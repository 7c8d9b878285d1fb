"""Cluster's writes on a real API server: to the very object meant, known at once, and only with the lease."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio

from sluice_operator.cluster.client import Api
from sluice_operator.cluster.cluster import Cluster
from sluice_operator.cluster.errors import ApiError, Gone, NotLeading, Outdated
from sluice_operator.cluster.lists import refresh, refresh_all
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key
from sluice_operator.writes import Bind, Nominate
from tests.integration.nodes import Nodes
from tests.integration.progress_scene import JOB_SPEC, Kube, until

pytestmark = pytest.mark.integration

Body = dict[str, Any]
GATED = "sluice.dev/claim"


class Held:
    """A lease that a test holds or not."""

    def __init__(self) -> None:
        self.held = True
        self.term = 1

    def check(self) -> float:
        if not self.held:
            raise NotLeading("the test says so")
        return 10.0


@pytest.fixture
def lease() -> Held:
    return Held()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest_asyncio.fixture
async def cluster(api: Api, store: Store, lease: Held) -> AsyncIterator[Cluster]:
    yield Cluster(api, store, lease, "test")


def finetunejob(namespace: str, name: str = "j") -> Body:
    place = {"name": name, "namespace": namespace}
    return {"apiVersion": "sluice.dev/v1alpha1", "kind": "FineTuneJob", "metadata": place, "spec": JOB_SPEC}


def stage_job(namespace: str, name: str = "t", gates: tuple[str, ...] = (GATED,), **pod: Any) -> Body:
    labels = {"sluice.dev/job": "j", "sluice.dev/stage": "Train", "sluice.dev/attempt": "1"}
    spec = {
        "restartPolicy": "Never",
        "schedulingGates": [{"name": gate} for gate in gates],
        "containers": [
            {"name": "trainer", "image": "nothing", "resources": {"limits": {"nvidia.com/gpu": "1", "memory": "1Gi"}}}
        ],
        **pod,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }


def slot(namespace: str, name: str = "chat-0") -> Body:
    labels = {"sluice.dev/engine": "chat", "sluice.dev/slot": "0"}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "vllm", "image": "nothing"}]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": pod},
    }


def key(body: Body) -> Key:
    return Key(body["kind"], body["metadata"]["namespace"], body["metadata"]["name"])


async def test_created_object_is_in_the_store_before_any_watch_event(
    cluster: Cluster, store: Store, api: Api, namespace: str
) -> None:
    made = await cluster.create(stage_job(namespace))
    view = store.world().stage_jobs[key(made)]
    assert (view.uid, view.seen) == (made["metadata"]["uid"], False)
    await refresh(api, store, "Job")
    assert store.world().stage_jobs[key(made)].seen


async def test_require_refuses_another_uid_and_a_deleting_object(
    cluster: Cluster, store: Store, kube: Kube, namespace: str
) -> None:
    """Whatever has been seen of it: the store knows afterwards."""
    place = f"/apis/sluice.dev/v1alpha1/namespaces/{namespace}/finetunejobs"
    body = finetunejob(namespace)
    made = await kube.call(
        "POST", place, {**body, "metadata": {**body["metadata"], "finalizers": ["test.sluice.dev/x"]}}
    )
    uid = made["metadata"]["uid"]
    await cluster.require(key(made), uid)
    with pytest.raises(Gone):
        await cluster.require(key(made), "another")
    await kube.call("DELETE", f"{place}/j")
    with pytest.raises(Outdated, match="is being deleted"):
        await cluster.require(key(made), uid)
    assert store.world().jobs[key(made)].metadata.deletion_timestamp
    await kube.call("PATCH", f"{place}/j", {"metadata": {"finalizers": None}}, "application/merge-patch+json")
    with pytest.raises(Gone):
        await cluster.require(key(made), uid)
    assert key(made) not in store.world().jobs


async def test_create_of_an_existing_object_returns_it(cluster: Cluster, namespace: str) -> None:
    first = await cluster.create(stage_job(namespace))
    other = stage_job(namespace, gates=())
    again = await cluster.create(other)
    assert again["metadata"]["uid"] == first["metadata"]["uid"]
    assert again["spec"]["template"]["spec"]["schedulingGates"] == [{"name": GATED}]


async def test_apply_to_a_deleted_object_does_not_recreate_it(
    cluster: Cluster, store: Store, kube: Kube, namespace: str
) -> None:
    made = await cluster.apply(slot(namespace))
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    await kube.call("DELETE", f"{path}/chat-0?propagationPolicy=Background")
    again = slot(namespace)
    again["metadata"]["uid"] = made["metadata"]["uid"]
    with pytest.raises(Gone):
        await cluster.apply(again)
    assert key(made) not in store.world().slots
    assert (await kube.call("GET", path))["items"] == []


@pytest.mark.parametrize("replaced", [False, True])
async def test_write_to_a_deleted_or_recreated_object_is_outdated(
    cluster: Cluster, store: Store, kube: Kube, namespace: str, replaced: bool
) -> None:
    made = await cluster.create(finetunejob(namespace))
    deployment = await cluster.create(slot(namespace))
    await kube.call("DELETE", f"/apis/sluice.dev/v1alpha1/namespaces/{namespace}/finetunejobs/j")
    await kube.call("DELETE", f"/apis/apps/v1/namespaces/{namespace}/deployments/chat-0")
    if replaced:
        await kube.call(
            "POST", f"/apis/sluice.dev/v1alpha1/namespaces/{namespace}/finetunejobs", finetunejob(namespace)
        )
        await kube.call("POST", f"/apis/apps/v1/namespaces/{namespace}/deployments", slot(namespace))
    job, uid = key(made), made["metadata"]["uid"]
    writes: list[Callable[[], Awaitable[object]]] = [
        lambda: cluster.apply_status(job, uid, {"summary": "Training"}),
        lambda: cluster.annotate(job, uid, {"sluice.dev/outcomes": "{}"}),
        lambda: cluster.scale_slot(key(deployment), deployment["metadata"]["uid"], 0),
    ]
    for write in writes:
        with pytest.raises(Outdated):
            await write()
    assert uid not in {known.metadata.uid for known in store.world().jobs.values()}
    assert deployment["metadata"]["uid"] not in {known.uid for known in store.world().slots.values()}
    await cluster.delete(job, uid, foreground=True)  # as good as done
    there = await kube.call("GET", f"/apis/sluice.dev/v1alpha1/namespaces/{namespace}/finetunejobs")
    assert [item.get("status", {}).get("summary", "") for item in there["items"]] == ([""] if replaced else [])


async def test_field_managers_own_separate_fields(cluster: Cluster, namespace: str, kube: Kube) -> None:
    made = await cluster.create(finetunejob(namespace))
    job, uid = key(made), made["metadata"]["uid"]
    await cluster.annotate(job, uid, {"sluice.dev/outcomes": "{}"})
    await cluster.apply_progress(job, uid, {"step": 5})
    await cluster.apply_status(job, uid, {"summary": "Training", "attempt": 1})
    await cluster.apply_status(job, uid, {"summary": "Done"})
    now = await kube.call("GET", f"/apis/sluice.dev/v1alpha1/namespaces/{namespace}/finetunejobs/j")
    assert now["metadata"]["annotations"] == {"sluice.dev/outcomes": "{}"}
    assert now["spec"]["resources"]["gpus"] == 1
    assert now["status"]["progress"]["step"] == 5
    assert (now["status"]["summary"], now["status"].get("attempt", 0)) == ("Done", 0)


async def test_foreground_delete_marks_the_object_as_deleting(
    cluster: Cluster, store: Store, api: Api, namespace: str
) -> None:
    made = await cluster.create(stage_job(namespace))
    await cluster.delete(key(made), made["metadata"]["uid"], foreground=True)
    held = store.world().stage_jobs.get(key(made))
    assert held is None or held.deleting

    async def gone() -> bool:
        await refresh(api, store, "Job")
        return key(made) not in store.world().stage_jobs

    await until(gone)


async def test_a_gated_pod_is_bound_to_its_node_and_nominated(
    cluster: Cluster, store: Store, api: Api, nodes: Nodes, namespace: str
) -> None:
    full, free = await nodes.add(f"a-{namespace}", gpus=0), await nodes.add(f"b-{namespace}", gpus=1)
    at = datetime.now(UTC)
    await refresh_all(api, store)
    made = await cluster.create(stage_job(namespace, gates=("example.com/other", GATED), nodeSelector={"x": "y"}))
    await nodes._kube.call(
        "PATCH", f"/api/v1/nodes/{free}", {"metadata": {"labels": {"x": "y"}}}, "application/merge-patch+json"
    )
    pod = await _pod_of(api, store, made)
    with pytest.raises(Outdated):
        await cluster.bind_pod(pod.key, "another-uid", free, at)
    await cluster.do((Bind(pod.key, pod.uid, free, at), Nominate(pod.key, pod.uid, free)))
    view = store.world().pods[pod.key]
    assert (view.gates, view.nominated_node, view.bound_at) == (("example.com/other",), free, at)
    await cluster.bind_pod(pod.key, pod.uid, free, at)  # as good as done
    raw = await nodes._kube.call("GET", f"/api/v1/namespaces/{namespace}/pods/{pod.key.name}")
    assert raw["spec"]["nodeSelector"] == {"x": "y", "kubernetes.io/hostname": free}
    assert full != free


async def test_the_real_scheduler_takes_a_bound_pod_to_its_node(
    cluster: Cluster, store: Store, api: Api, nodes: Nodes, namespace: str
) -> None:
    await nodes.add(f"a-{namespace}")
    chosen = await nodes.add(f"b-{namespace}")
    made = await cluster.create(stage_job(namespace))
    pod = await _pod_of(api, store, made)
    await cluster.do((Bind(pod.key, pod.uid, chosen, datetime.now(UTC)), Nominate(pod.key, pod.uid, chosen)))

    async def bound() -> str:
        await refresh(api, store, "Pod")
        return store.world().pods[pod.key].node

    assert await until(bound) == chosen
    assert pod.key in store.world().pods_on[chosen]


async def test_a_slot_is_scaled(cluster: Cluster, store: Store, namespace: str) -> None:
    made = await cluster.apply(slot(namespace))
    await cluster.scale_slot(key(made), made["metadata"]["uid"], 0)
    assert store.world().slots[key(made)].size == 0


async def test_failed_create_quotes_the_resource_quota(cluster: Cluster, kube: Kube, namespace: str) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"requests.nvidia.com/gpu": "0"}}}
    await kube.call("POST", f"/api/v1/namespaces/{namespace}/resourcequotas", quota)
    made = await cluster.create(stage_job(namespace))
    words = await until(lambda: cluster.failed_create(key(made)))
    assert "exceeded quota: none" in words
    assert await cluster.failed_create(Key("Job", namespace, "other")) == ""


async def test_an_event_is_on_the_object(cluster: Cluster, kube: Kube, namespace: str) -> None:
    made = await cluster.create(finetunejob(namespace))
    await cluster.event(key(made), made["metadata"]["uid"], "Normal", "Training", "x" * 5000)
    await cluster.event(Key("FineTuneJob", "no-such-namespace", "j"), "uid", "Normal", "Lost", "never raises")
    (event,) = (await kube.call("GET", f"/api/v1/namespaces/{namespace}/events"))["items"]
    assert (event["involvedObject"]["name"], event["reportingComponent"]) == ("j", "sluice.dev/sluice")
    assert len(event["message"]) == 1024


async def test_events_are_in_their_order_and_what_repeats_is_counted(
    cluster: Cluster, kube: Kube, namespace: str
) -> None:
    """As kubectl describe sorts them: by lastTimestamp, which is known to the second, and then as they are listed."""
    made = await cluster.create(finetunejob(namespace))
    place, uid = key(made), made["metadata"]["uid"]
    reasons = ["Preparing", "WaitingForGPUs", "Claimed", "Draining", "Binding", "Training", "Exporting", "Succeeded"]
    for reason in reasons:
        await cluster.event(place, uid, "Normal", reason, "told once")
    await cluster.event(place, uid, "Normal", "Claimed", "told once")
    listed = (await kube.call("GET", f"/api/v1/namespaces/{namespace}/events"))["items"]
    assert [event["reason"] for event in listed] == reasons
    told = sorted(listed, key=lambda event: str(event["lastTimestamp"]))
    assert [event["reason"] for event in told if event["reason"] != "Claimed"] == [r for r in reasons if r != "Claimed"]
    counts = {event["reason"]: event["count"] for event in listed}
    assert counts == dict.fromkeys(reasons, 1) | {"Claimed": 2}
    claimed = next(event for event in listed if event["reason"] == "Claimed")
    await kube.call("DELETE", f"/api/v1/namespaces/{namespace}/events/{claimed['metadata']['name']}")
    await cluster.event(place, uid, "Normal", "Claimed", "told once")
    listed = (await kube.call("GET", f"/api/v1/namespaces/{namespace}/events"))["items"]
    assert next(event["count"] for event in listed if event["reason"] == "Claimed") == 1


async def test_without_the_lease_nothing_is_written(cluster: Cluster, lease: Held, kube: Kube, namespace: str) -> None:
    made = await cluster.create(slot(namespace))
    place, uid = key(made), made["metadata"]["uid"]
    lease.held = False
    writes: list[Callable[[], Awaitable[object]]] = [
        lambda: cluster.create(stage_job(namespace)),
        lambda: cluster.apply(slot(namespace, "chat-1")),
        lambda: cluster.apply_status(place, uid, {}),
        lambda: cluster.annotate(place, uid, {"a": "b"}),
        lambda: cluster.delete(place, uid, foreground=False),
        lambda: cluster.scale_slot(place, uid, 0),
        lambda: cluster.nominate_pod(Key("Pod", namespace, "p"), "uid", "n1"),
    ]
    for write in writes:
        with pytest.raises(NotLeading):
            await write()
    await cluster.event(place, uid, "Normal", "Lost", "never raises")
    there = await kube.call("GET", f"/apis/apps/v1/namespaces/{namespace}/deployments")
    assert [(d["metadata"]["name"], d["spec"]["replicas"]) for d in there["items"]] == [("chat-0", 1)]


async def test_a_refusal_is_told_in_the_api_servers_words(cluster: Cluster, namespace: str) -> None:
    wrong = finetunejob(namespace)
    wrong["spec"] = {**JOB_SPEC, "resources": {"gpus": 0}}
    with pytest.raises(ApiError) as refused:
        await cluster.create(wrong)
    assert (refused.value.reason, "spec.resources.gpus" in refused.value.message) == ("Invalid", True)


async def _pod_of(api: Api, store: Store, job: Body) -> Any:
    async def found() -> Any:
        await refresh(api, store, "Pod")
        await asyncio.sleep(0)
        its = (job["metadata"]["namespace"], job["metadata"]["uid"])
        return next(iter(store.world().pods_of.get(its, {}).values()), None)

    return await until(found)
