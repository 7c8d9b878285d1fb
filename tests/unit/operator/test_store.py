"""The store ends in the truth, whatever the order in which it hears of things."""

import random
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice_api.reports import EngineReport
from sluice_operator.observe.parse import Stored, parse, stored_key, uid_of, version_of
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key, PodView, StageJobView
from sluice_operator.observe.world import Heartbeat, Reported, World
from tests.unit.operator.bodies import Body, attempt_of, engine_pod, finetunejob, pod, read, stage_job, trainer_pod

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MAPS = ("pods_of", "pods_on", "pods_coming", "engine_pods", "stage_jobs_of", "slots_of")


def pods(store: Store) -> dict[str, int]:
    """What is held: name and version."""
    return {key.name: view.resource_version for key, view in store.world().pods.items()}


def listing(store: Store, *bodies: Body, at: int) -> None:
    store.replace("Pod", [read(b) for b in bodies], at, store.newest("Pod"))


def a_pod(version: int, name: str = "a", uid: str = "", **more: Any) -> Body:
    return engine_pod(name, version, engine="chat", uid=uid, **more)


def test_older_version_never_overwrites_newer() -> None:
    store = Store()
    store.put(read(a_pod(5, node="n1")), seen=True)
    store.put(read(a_pod(4)), seen=True)
    assert pods(store) == {"a": 5}


def test_a_deleted_uid_never_rises_again() -> None:
    store = Store()
    store.remove(Key("Pod", "team", "a"), "uid-a", 7)
    store.put(read(a_pod(5)), seen=True)
    assert pods(store) == {}


def test_list_does_not_remove_newer_objects() -> None:
    store = Store()
    asked_at = store.newest("Pod")
    store.put(read(a_pod(12)), seen=True)
    store.replace("Pod", [], 10, asked_at)
    assert pods(store) == {"a": 12}


def test_a_list_finds_a_delete_that_the_watch_missed() -> None:
    store = Store()
    store.put(read(a_pod(5)), seen=True)
    listing(store, at=10)
    assert pods(store) == {}
    store.put(read(a_pod(6)), seen=True)
    assert pods(store) == {}, "an event that was late made it rise again"


def test_list_does_not_restore_objects_deleted_after_it() -> None:
    store = Store()
    asked_at = store.newest("Pod")
    store.remove(Key("Pod", "team", "a"), "uid-a", 12)
    store.replace("Pod", [read(a_pod(5))], 10, asked_at)
    assert pods(store) == {}


def test_a_delete_of_unknown_version_outlives_a_list_that_was_under_way() -> None:
    store = Store()
    store.put(read(a_pod(5)), seen=True)
    asked_at = store.newest("Pod")
    store.remove(Key("Pod", "team", "a"), "uid-a")
    store.replace("Pod", [read(a_pod(5))], 10, asked_at)
    store.put(read(a_pod(11)), seen=True)
    assert pods(store) == {}


def test_list_older_than_the_last_one_is_ignored() -> None:
    store = Store()
    listing(store, a_pod(5), at=20)
    store.replace("Pod", [], 15, 10)
    assert pods(store) == {"a": 5}


def test_resource_version_that_goes_backwards_replaces_everything() -> None:
    store = Store()
    listing(store, a_pod(100), a_pod(90, "b"), at=100)
    store.remove(Key("Pod", "team", "b"), "uid-b", 101)
    listing(store, a_pod(7), a_pod(8, "b"), at=10)
    assert pods(store) == {"a": 7, "b": 8}
    store.put(read(a_pod(11)), seen=True)
    assert pods(store) == {"a": 11, "b": 8}


def test_our_own_write_counts_at_once_and_becomes_seen_by_the_watch() -> None:
    store = Store()
    store.put(read(stage_job("j", 5)), seen=False)
    (view,) = store.world().stage_jobs.values()
    assert not view.seen
    store.put(read(stage_job("j", 5)), seen=True)
    (view,) = store.world().stage_jobs.values()
    assert view.seen
    store.put(read(stage_job("j", 9)), seen=False)
    (view,) = store.world().stage_jobs.values()
    assert (view.seen, view.resource_version) == (True, 9)
    assert set(store.world().claiming) == {view.key}


def test_listener_is_called_when_a_write_is_seen() -> None:
    store, told = Store(), list[tuple[Stored | None, Stored | None]]()
    store.put(read(stage_job("j", 5)), seen=False)
    store.listen(lambda old, new: told.append((old, new)))
    store.put(read(stage_job("j", 5)), seen=True)
    ((old, new),) = told
    assert isinstance(old, StageJobView)
    assert new == replace(old, seen=True)


def test_pods_coming_are_nominated_and_not_yet_bound() -> None:
    store = Store()
    for version, node, nominated, coming in ((1, "", "", []), (2, "", "n1", ["n1"]), (3, "n1", "n1", [])):
        body = a_pod(version, node=node)
        body.setdefault("status", {})["nominatedNodeName"] = nominated
        store.put(read(body), seen=True)
        assert list(store.world().pods_coming) == coming


def test_strangers_pods_are_kept_while_they_take_something_from_a_node() -> None:
    store = Store()
    store.put(read(pod("s", 1)), seen=True)
    assert pods(store) == {}
    store.put(read(pod("s", 2, node="n1", metadata={"labels": {"app": "other"}})), seen=True)
    (view,) = store.world().pods_on["n1"].values()
    assert (view.labels, view.requests) == ({}, {"cpu": 500, "nvidia.com/gpu": 1})
    store.put(read(pod("s", 3, node="n1", phase="Succeeded")), seen=True)
    assert pods(store) == {}
    assert not store.world().pods_on


def test_ended_stage_pod_stays_as_long_as_its_job() -> None:
    store = Store()
    store.put(read(stage_job("j", 1)), seen=True)
    store.put(read(trainer_pod("p", 2, job="j", node="n1", phase="Failed")), seen=True)
    store.remove(Key("Pod", "team", "p"), "uid-p", 3)
    assert [p.ended for p in store.world().pods_of["team", "uid-j-1"].values()] == [True]
    listing(store, at=5)
    assert pods(store) == {"p": 2}
    store.remove(Key("Job", "team", attempt_of("j")), "uid-j-1", 6)
    assert pods(store) == {}


def test_an_ended_pod_that_still_exists_outlives_its_job() -> None:
    store = Store()
    store.put(read(stage_job("j", 1)), seen=True)
    store.put(read(trainer_pod("p", 2, job="j", node="n1", phase="Failed")), seen=True)
    store.remove(Key("Job", "team", attempt_of("j")), "uid-j-1", 6)
    assert pods(store) == {"p": 2}


def test_a_pod_that_was_deleted_while_it_ran_is_gone() -> None:
    store = Store()
    store.put(read(stage_job("j", 1)), seen=True)
    store.put(read(trainer_pod("p", 2, job="j", node="n1", phase="Running")), seen=True)
    store.remove(Key("Pod", "team", "p"), "uid-p", 3)
    assert pods(store) == {}


def test_unserved_namespaces_have_no_custom_resources() -> None:
    store = Store(lambda namespace: namespace == "ours")
    store.put(read(finetunejob("j", 1)), seen=True)
    store.put(read(finetunejob("j", 2, uid="uid-2", namespace="ours")), seen=True)
    assert [key.namespace for key in store.world().jobs] == ["ours"]


def test_unreadable_object_keeps_its_last_readable_state(caplog: pytest.LogCaptureFixture) -> None:
    store = Store()
    store.put(read(finetunejob("good", 1)), seen=True)
    poison = finetunejob("good", 2)
    poison["spec"]["resources"] = {"gpus": "many"}
    for _ in range(3):
        store.put(parse("FineTuneJob", poison), seen=True)
    assert [job.metadata.resource_version for job in store.world().jobs.values()] == ["1"]
    assert [obj.resource_version for obj in store.unreadable()] == [2]
    assert len([record for record in caplog.records if "cannot be read" in record.message]) == 1
    store.put(read(finetunejob("good", 3)), seen=True)
    assert store.unreadable() == []


def test_late_unreadable_state_is_ignored() -> None:
    """A list has shown what follows it; the watch brings both then, and the second says nothing new."""
    store = Store()
    poison = finetunejob("good", 2)
    poison["spec"]["resources"] = {"gpus": "many"}
    store.replace("FineTuneJob", [read(finetunejob("good", 3))], 3)
    for late in (parse("FineTuneJob", poison), read(finetunejob("good", 3))):
        store.put(late, seen=True)
    assert store.unreadable() == []


def test_reports_and_heartbeats_go_with_their_pods_and_jobs() -> None:
    store = Store()
    store.put(read(a_pod(1)), seen=True)
    store.put(read(stage_job("j", 2)), seen=True)
    store.findings.report("uid-a", Reported(EngineReport(sequence=1, serving=True, draining=False, in_flight=0), NOW))
    store.findings.heartbeat("uid-j-1", Heartbeat(1, NOW, None))
    assert (set(store.world().reports), set(store.world().heartbeats)) == ({"uid-a"}, {"uid-j-1"})
    store.remove(Key("Pod", "team", "a"), "uid-a", 3)
    store.remove(Key("Job", "team", attempt_of("j")), "uid-j-1", 3)
    assert (dict(store.world().reports), dict(store.world().heartbeats)) == ({}, {})


def test_new_term_begins_without_reports_and_heartbeats() -> None:
    """Another may have led since then, and heard of them all the time."""
    store = Store()
    store.put(read(a_pod(1)), seen=True)
    store.put(read(stage_job("j", 2)), seen=True)
    store.findings.report("uid-a", Reported(EngineReport(sequence=1, serving=True, draining=False, in_flight=0), NOW))
    store.findings.heartbeat("uid-j-1", Heartbeat(1, NOW, None))
    store.findings.begin_term(3, NOW)
    world = store.world()
    assert (dict(world.reports), dict(world.heartbeats), world.term, world.since) == ({}, {}, 3, NOW)


@pytest.mark.parametrize(
    ("case", "held", "shown", "listed", "ends"),
    [
        ("the list shows what is held", 5, 5, 9, 5),
        ("it shows something newer", 5, 7, 9, 7),
        ("what is held has come after the list", 11, 7, 9, 11),
        ("etcd was restored with raised revisions: lists are newer, objects are older", 700, 500, 10**9, 500),
    ],
)
def test_a_list_overwrites_what_is_no_newer_than_itself(
    case: str, held: int, shown: int, listed: int, ends: int
) -> None:
    store = Store()
    store.put(read(a_pod(held)), seen=True)
    store.replace("Pod", [read(a_pod(shown))], listed)
    assert [pod.resource_version for pod in store.world().pods.values()] == [ends], case


def test_object_restored_from_a_backup_is_stored_again() -> None:
    """It was deleted after the backup was made."""
    store = Store()
    store.put(read(a_pod(500)), seen=True)
    store.remove(Key("Pod", "team", "a"), "uid-a", 700)
    store.replace("Pod", [read(a_pod(500))], 10**9, store.newest("Pod"))
    assert [pod.uid for pod in store.world().pods.values()] == ["uid-a"]
    store.put(read(a_pod(10**9 + 1)), seen=True)
    assert [pod.resource_version for pod in store.world().pods.values()] == [10**9 + 1]


def test_world_is_read_only() -> None:
    world = Store().world()
    with pytest.raises(TypeError):
        world.pods[Key("Pod", "", "x")] = None  # type: ignore[index]


# Any history, heard of in any order.


@dataclass
class Server:
    """An API server's history of pods: every event, and what a list at each version would have shown."""

    version: int = 0
    alive: dict[str, Body] = field(default_factory=dict)
    events: list[tuple[str, Body]] = field(default_factory=list)
    lists: dict[int, list[Body]] = field(default_factory=lambda: {0: []})

    def do(self, name: str, change: str, node: str, slot: int) -> None:
        self.version += 1
        old = self.alive.get(name)
        if change == "delete" and old is not None:
            last = {**old, "metadata": {**old["metadata"], "resourceVersion": str(self.version)}}
            del self.alive[name]
            self.events.append(("DELETED", last))
        elif change != "delete":
            uid = old["metadata"]["uid"] if old else f"{name}-{self.version}"
            self.alive[name] = (
                engine_pod(name, self.version, engine="chat", slot=slot, node=node, uid=uid)
                if name != "stranger"
                else self._stranger(old, uid)
            )
            self.events.append(("ADDED" if old is None else "MODIFIED", self.alive[name]))
        self.lists[self.version] = list(self.alive.values())

    def _stranger(self, old: Body | None, uid: str) -> Body:
        """Nobody's pod of ours: not bound, then running, then ended."""
        phases = {"Pending": "Running", "Running": "Succeeded", "Succeeded": "Succeeded"}
        phase = phases[old["status"]["phase"]] if old else "Pending"
        return pod("stranger", self.version, node="" if phase == "Pending" else "n1", phase=phase, uid=uid)

    def truth(self) -> dict[Key, Stored]:
        """What is to be held: strangers only while they take something from a node."""
        views = [read(raw) for raw in self.alive.values()]
        pods = [view for view in views if isinstance(view, PodView)]
        return {view.key: view for view in pods if view.labels or (view.node and not view.ended)}


NAMES = st.sampled_from(("a", "b", "stranger"))
WHAT = st.sampled_from(("put", "put", "delete"))
CHANGES = st.lists(st.tuples(NAMES, WHAT, st.sampled_from(("", "n1", "n2")), st.integers(0, 1)), max_size=14)


def hear(store: Store, event: tuple[str, Body]) -> None:
    kind, raw = event
    parsed = read(raw)
    if kind == "DELETED":
        store.remove(stored_key(parsed), uid_of(parsed), version_of(parsed))
    else:
        store.put(parsed, seen=True)


def maps(world: World) -> dict[str, Any]:
    shown = {name: {group: dict(members) for group, members in getattr(world, name).items()} for name in MAPS}
    return {**shown, "pods": dict(world.pods)}


def rebuilt(world: World) -> dict[str, Any]:
    fresh = Store()
    for view in world.pods.values():
        fresh.put(view, seen=True)
    return maps(fresh.world())


@settings(max_examples=400)
@given(changes=CHANGES, seed=st.integers(0, 10_000), repeats=st.integers(1, 2), lists=st.integers(0, 4))
def test_store_ends_in_the_truth_after_all_events_in_any_order(
    changes: list[tuple[str, str, str, int]], seed: int, repeats: int, lists: int
) -> None:
    server, dice = Server(), random.Random(seed)
    for change in changes:
        server.do(*change)
    heard: list[Any] = server.events * repeats + [dice.choice(list(server.lists)) for _ in range(lists)]
    dice.shuffle(heard)
    store = Store()
    for item in heard:
        if isinstance(item, int):
            # A list is never older than what was known when it was asked for; it was asked for long ago.
            store.replace("Pod", [read(raw) for raw in server.lists[item]], item, 0)
        else:
            hear(store, item)
        assert maps(store.world()) == rebuilt(store.world())
    assert dict(store.world().pods) == server.truth()


@settings(max_examples=400)
@given(changes=CHANGES, seed=st.integers(0, 10_000))
def test_store_ends_in_the_truth_after_missed_events_and_a_list(
    changes: list[tuple[str, str, str, int]], seed: int
) -> None:
    server, dice = Server(), random.Random(seed)
    for change in changes:
        server.do(*change)
    heard = [event for event in server.events if dice.random() < 0.6]
    dice.shuffle(heard)
    late = [event for event in server.events if dice.random() < 0.3]
    store = Store()
    for event in heard:
        hear(store, event)
    store.replace("Pod", [read(raw) for raw in server.alive.values()], server.version, store.newest("Pod"))
    for event in late:
        hear(store, event)
    assert dict(store.world().pods) == server.truth()
    assert maps(store.world()) == rebuilt(store.world())
