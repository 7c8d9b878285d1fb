"""Who is looked at again when something changes."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from sluice_operator.handlers.routing import every_key, goes_first, keys_for
from sluice_operator.handlers.watching import route_changes, take_event
from sluice_operator.observe.parse import Stored
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import engine_key, job_key, pool_key
from sluice_operator.reconcile.wakeups import Wakeups
from tests.unit.operator.bodies import (
    Body,
    adapter,
    body,
    engine,
    engine_pod,
    finetunejob,
    pod,
    read,
    stage_job,
    trainer_pod,
)


def shared(job: Body) -> Body:
    return {**job, "spec": {**job["spec"], "scheduling": {"policy": "Shared"}}}


def device_claim(name: str, version: int, *pods: str, **more: Any) -> Body:
    """A ResourceClaim that has a GPU of n1."""
    terms = [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]
    results = [{"driver": "gpu.nvidia.com", "pool": "n1", "device": "gpu-0"}]
    allocation = {"devices": {"results": results}, "nodeSelector": {"nodeSelectorTerms": terms}}
    users = [{"resource": "pods", "name": pod, "uid": pod} for pod in pods]
    return body("ResourceClaim", name, version, status={"allocation": allocation, "reservedFor": users}, **more)


WORLD = (
    finetunejob("trains", 1, pool="a"),
    finetunejob("waits", 1, pool="a", publish="chat"),
    finetunejob("elsewhere", 1, pool="b"),
    shared(finetunejob("shares", 1, pool="b", namespace="other")),
    {**finetunejob("over", 1, pool="a", publish="chat"), "status": {"finishedAt": "2026-01-01T00:00:00Z"}},
    engine("chat", 1, pool="a"),
    engine("embed", 1, pool="b"),
    adapter("tone", 1, on="chat"),
    body("GPUPool", "a", 1, namespace="", apiVersion="sluice.dev/v1alpha1", spec={}),
    stage_job("trains", 1, borrows=(("chat", 0),), pool="a"),
    stage_job("urgent", 1, preempts="waits", pool="a"),
    body("PersistentVolumeClaim", "models", 1, spec={"volumeName": "pv-1"}),
)


@pytest.fixture
def store() -> Store:
    made = Store()
    for raw in WORLD:
        made.put(read(raw), seen=True)
    return made


def routed(store: Store, old: Body | None, new: Body | None) -> set[str]:
    before: Stored | None = read(old) if old else None
    after: Stored | None = read(new) if new else None
    keys = keys_for(before, after, store.world(), store.links)
    short = {"FineTuneJob": "job", "InferenceEngine": "engine", "Adapter": "adapter", "GPUPool": "pool"}
    return {f"{short[key.kind]}/{key.name}" for key in keys}


def with_status(raw: Body, **status: Any) -> Body:
    return {**raw, "status": status}


@pytest.mark.parametrize(
    ("rule", "old", "new", "expected"),
    [
        ("a new job: itself and its pool", None, finetunejob("new", 2, pool="a"), "job/new pool/a"),
        (
            "a job that moves: both pools",
            finetunejob("j", 2, pool="a"),
            finetunejob("j", 3, pool="b"),
            "job/j pool/a pool/b",
        ),
        (
            "progress concerns nobody",
            finetunejob("j", 2),
            with_status(finetunejob("j", 3), progress={"step": 5}),
            "",
        ),
        (
            "but the first estimate of its end",
            with_status(finetunejob("j", 2), progress={"step": 4}),
            with_status(finetunejob("j", 3), progress={"step": 5, "secondsLeft": 60}),
            "job/j",
        ),
        (
            "and not the next one",
            with_status(finetunejob("j", 2), progress={"step": 5, "secondsLeft": 60}),
            with_status(finetunejob("j", 3), progress={"step": 6, "secondsLeft": 50}),
            "",
        ),
        (
            "but a condition does",
            finetunejob("j", 2),
            with_status(finetunejob("j", 3), summary="Training", progress={"step": 5}),
            "job/j pool/default",
        ),
        ("nothing but a version", finetunejob("j", 2), finetunejob("j", 3), ""),
        (
            "an engine: its pool, adapters and borrowers",
            engine("chat", 1, pool="a"),
            None,
            "engine/chat pool/a adapter/tone job/trains",
        ),
        (
            "an adapter: its engine and the others there",
            None,
            adapter("x", 2, on="chat"),
            "adapter/x adapter/tone engine/chat",
        ),
        (
            "an adapter that a job has published",
            None,
            adapter("x", 2, on="embed", metadata={"labels": {"sluice.dev/job": "waits"}}),
            "adapter/x engine/embed job/waits",
        ),
        (
            "a claim: its job, its pool, who lends to it, who borrows there too",
            None,
            stage_job("waits", 2, borrows=(("chat", 1),), pool="a"),
            "job/waits pool/a engine/chat job/trains",
        ),
        ("a stage without a claim", None, stage_job("waits", 2, claims=False), "job/waits"),
        (
            "a trainer's pod that is bound",
            trainer_pod("p", 2, job="trains"),
            trainer_pod("p", 3, job="trains", node="n1"),
            "job/trains pool/a pool/default engine/chat",
        ),
        (
            "a trainer's pod that comes in another's place: that one's job too",
            trainer_pod("p", 2, job="urgent"),
            trainer_pod("p", 3, job="urgent", node="n1"),
            "job/urgent job/waits pool/a pool/default",
        ),
        (
            "a pod that asks for a node: the pool that it asks in, and nobody that has nodes",
            pod("p", 2, metadata={"labels": {"sluice.dev/scale-up": "b"}}),
            pod("p", 3, node="n1", metadata={"labels": {"sluice.dev/scale-up": "b"}}),
            "pool/b",
        ),
        (
            "a trainer's pod that only says something",
            trainer_pod("p", 2, job="trains", node="n1"),
            with_status(
                trainer_pod("p", 3, job="trains", node="n1"),
                phase="Pending",
                nominatedNodeName="n1",
            ),
            "job/trains engine/chat",
        ),
        (
            "who is suspended or resumed: the engines that lend to it too",
            finetunejob("trains", 2, pool="a"),
            {
                **finetunejob("trains", 3, pool="a"),
                "metadata": finetunejob("trains", 3, metadata={"generation": 2})["metadata"],
            },
            "job/trains pool/a engine/chat",
        ),
        (
            "an engine's pod: engine, adapters, borrowers, pools",
            None,
            engine_pod("p", 2, engine="chat", node="n1"),
            "engine/chat adapter/tone job/trains pool/a pool/default",
        ),
        ("a stranger's pod that is bound", None, pod("s", 2, node="n1"), "pool/a pool/default"),
        ("a stranger's pod that changes nothing", pod("s", 2, node="n1"), pod("s", 3, node="n1"), ""),
        (
            "a slot: its engine and who waits for it to be empty",
            None,
            body("Deployment", "chat-0", 2, metadata={"labels": {"sluice.dev/engine": "chat", "sluice.dev/slot": "0"}}),
            "engine/chat job/trains",
        ),
        (
            "a lost node: all pools, claims on it and who lends to them",
            body("Node", "n1", 2, namespace=""),
            None,
            "pool/a pool/default job/trains job/urgent engine/chat",
        ),
        (
            "a node that only says that it lives",
            body("Node", "n1", 2, namespace="", status={"conditions": [{"type": "Ready", "status": "True"}]}),
            body("Node", "n1", 3, namespace="", status={"conditions": [{"type": "Ready", "status": "True"}]}),
            "",
        ),
        (
            "a pool: what is in it",
            None,
            body("GPUPool", "a", 1, namespace="", apiVersion="sluice.dev/v1alpha1", spec={}),
            "pool/a pool/default engine/chat job/trains job/waits",
        ),
        (
            "a volume: the pools of jobs that mount its claim, and engines that do",
            None,
            body("PersistentVolume", "pv-1", 2, namespace=""),
            "engine/chat engine/embed pool/a pool/b",
        ),
        (
            "a namespace: whom pools and engines are open to",
            body("Namespace", "team", 1, namespace=""),
            body("Namespace", "team", 2, namespace="", metadata={"labels": {"gpus": "yes"}}),
            "pool/a pool/default",
        ),
        (
            "a placeholder: its engine",
            None,
            pod(
                "chat-0-placeholder", 2, metadata={"labels": {"sluice.dev/placeholder": "chat", "sluice.dev/slot": "0"}}
            ),
            "engine/chat",
        ),
        (
            "a ResourceSlice: all pools",
            None,
            body("ResourceSlice", "s", 2, namespace="", spec={"driver": "gpu.nvidia.com", "pool": {"name": "n1"}}),
            "pool/a pool/default",
        ),
        ("a ResourceClaim that has nothing yet", None, body("ResourceClaim", "theirs", 2), ""),
        ("one that has devices of a node", body("ResourceClaim", "c", 2), device_claim("c", 3), "pool/a pool/default"),
        ("and one more pod that uses them", device_claim("c", 2), device_claim("c", 3, "p"), ""),
        (
            "one of a slot that is gone: its engine too, which makes another",
            device_claim("chat-0-gpus", 2, metadata={"labels": {"sluice.dev/engine": "chat"}}),
            None,
            "pool/a pool/default engine/chat",
        ),
        (
            "a new engine",
            None,
            engine("new", 2, pool="b", namespace="other"),
            "engine/new pool/b",
        ),
        (
            "an engine that only says something",
            engine("new", 2, pool="b", namespace="other"),
            with_status(engine("new", 3, pool="b", namespace="other"), replicas=1),
            "engine/new pool/b",
        ),
        (
            "a claim that comes: who lacked it",
            None,
            body("PersistentVolumeClaim", "models", 2),
            "engine/chat engine/embed pool/a pool/b",
        ),
        (
            "a claim that is bound: its volume may be mounted on certain nodes only",
            body("PersistentVolumeClaim", "models", 2),
            body("PersistentVolumeClaim", "models", 3, spec={"volumeName": "pv-2"}),
            "engine/chat engine/embed pool/a pool/b",
        ),
        ("a claim that no job names", None, body("PersistentVolumeClaim", "other", 2), ""),
    ],
)
def test_change_is_routed_to_the_keys_that_it_concerns(
    store: Store, rule: str, old: Body | None, new: Body | None, expected: str
) -> None:
    assert routed(store, old, new) == set(expected.split()), rule


def test_new_leader_begins_with_every_key_and_the_default_pool(store: Store) -> None:
    assert {str(key) for key in every_key(store.world(), store.links)} >= {
        "GPUPool/default", "GPUPool/a", "FineTuneJob/team/over", "Adapter/team/tone", "InferenceEngine/team/embed",
    }  # fmt: skip


def event(event_type: str | None, body: dict[str, Any]) -> Any:
    """What a watch brings."""
    return {"type": event_type, "object": body}


def test_our_own_writes_are_routed_too() -> None:
    store, added = Store(), set[Key]()
    route_changes(store, added.add)
    store.put(read(stage_job("j", 5)), seen=False)
    assert Key("FineTuneJob", "team", "j") in added
    added.clear()
    take_event(store, "jobs", event("ADDED", stage_job("j", 5)))
    assert Key("FineTuneJob", "team", "j") in added, "that the watch has brought it is news"


def test_state_in_a_pods_delete_event_is_kept() -> None:
    store = Store()
    take_event(store, "jobs", event(None, stage_job("j", 1)))
    take_event(store, "pods", event("ADDED", trainer_pod("p", 2, job="j", node="n1", phase="Running")))
    take_event(store, "pods", event("DELETED", trainer_pod("p", 3, job="j", node="n1", phase="Failed")))
    assert [view.ended for view in store.world().pods.values()] == [True]


def test_unreadable_object_in_an_event_stops_no_other() -> None:
    store = Store()
    take_event(
        store,
        "finetunejobs",
        event("ADDED", {"metadata": {"name": "poison", "uid": "u", "resourceVersion": "1"}}),
    )
    take_event(
        store,
        "finetunejobs",
        event("DELETED", {"metadata": {"name": "poison", "uid": "u", "resourceVersion": "2"}}),
    )
    take_event(store, "finetunejobs", event("ADDED", finetunejob("good", 3)))
    assert [key.name for key in store.world().jobs] == ["good"]
    assert store.unreadable() == []


class Unread(dict[Key, Any]):
    """What nobody goes through."""

    def __iter__(self) -> Iterator[Key]:
        raise AssertionError("every object was looked at")

    keys = values = items = __iter__  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (engine_pod("p", 1, engine="chat"), engine_pod("p", 2, engine="chat", node="n")),
        (trainer_pod("trains-1-x", 1, job="trains"), None),
        (finetunejob("trains", 1, pool="a"), None),
        (stage_job("trains", 1, pool="a"), None),
    ],
)
def test_a_change_is_routed_without_looking_at_every_job(store: Store, old: Body, new: Body | None) -> None:
    world = store.world()
    unread = replace(world, jobs=Unread(world.jobs), pods=Unread(world.pods), stage_jobs=Unread(world.stage_jobs))
    assert keys_for(read(old), read(new) if new else None, unread, store.links)


def test_keys_with_gpus_go_before_jobs_that_wait(store: Store) -> None:
    world = store.world()
    first = {key.name for key in every_key(world, store.links) if goes_first(world, key)}
    assert first == {"trains", "chat", "embed", "tone", "a", "default"}


@pytest.mark.parametrize(
    ("rule", "waits_for", "change"),
    [
        ("this very object", Key("PersistentVolumeClaim", "team", "lost"), body("PersistentVolumeClaim", "lost", 2)),
        ("any of its namespace", engine_key("team", ""), engine("new", 2, pool="b")),
        ("any of its kind", Key("Node", "", ""), body("Node", "n9", 2, namespace="")),
    ],
)
def test_wakeups_reach_the_job_that_waits_and_its_pool(store: Store, rule: str, waits_for: Key, change: Body) -> None:
    wakeups, waits, other = Wakeups(), job_key("team", "waits"), job_key("team", "elsewhere")
    wakeups.wait(waits, [waits_for])
    wakeups.wait(other, [Key(waits_for.kind, waits_for.namespace or "none", "another")])
    found = keys_for(None, read(change), store.world(), store.links, wakeups.of)
    assert found >= {waits, pool_key("a")}, rule
    assert other not in found, rule
    wakeups.wait(waits, [])
    assert waits not in keys_for(None, read(change), store.world(), store.links, wakeups.of), rule
