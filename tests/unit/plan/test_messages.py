"""What waiting jobs are told: the nearest true way, remedies that can be followed together, and when to look again."""

from datetime import timedelta

import pytest

from dev.simulate.builder import NOW, WorldBuilder
from sluice_api.reasons import Reason
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import job_key
from sluice_operator.plan.obstacle import Wait
from sluice_operator.plan.pool.refusals import refusal
from tests.unit.plan.worlds import allocated, busy_engine, change, decide, volume_in_zone


def wait_of(builder: WorldBuilder, name: str) -> Wait:
    return allocated(builder).waits[job_key("team", name)]


def holding(builder: WorldBuilder, name: str, gpus: int, node: str = "n1") -> None:
    job = builder.job(name, gpus)
    builder.trainer_pod(builder.stage_job(job, claim=builder.claim(node, gpus=gpus)), node)


@pytest.mark.parametrize("jobs", [(3,), (1, 1, 1)])
def test_loan_leaves_enough_replicas_for_the_load(jobs: tuple[int, ...]) -> None:
    """28 requests are in flight, and reclaimAbove is 10: three of four replicas stay, however many jobs ask at once."""
    builder = WorldBuilder()
    builder.node(4)
    busy_engine(builder)
    for number, gpus in enumerate(jobs):
        builder.job(f"j{number}", gpus)
    allocation = allocated(builder)
    lent = sum(len(claim.borrowed) for claim in allocation.claims.values())
    assert lent == (0 if jobs == (3,) else 1)
    assert allocation.again_at == NOW + timedelta(seconds=5), "the load may be less by then"
    wait = wait_of(builder, f"j{len(jobs) - 1}")
    assert Reason.ENGINE_IN_DEMAND in {obstacle.reason for way in wait.ways for obstacle in way}
    later = allocated(builder, NOW + timedelta(seconds=5)).waits[job_key("team", f"j{len(jobs) - 1}")]
    assert later == wait, "a message that changed each time would be written each time"


@pytest.mark.parametrize("guests", [9, 10, 11])
def test_pool_looks_again_in_time_for_a_job_far_from_the_head(guests: int) -> None:
    """Guests wait in front, who reserve no node. Behind them is a job for which training gives way in five minutes."""
    builder = WorldBuilder()
    builder.dra_pool()
    builder.node(2)
    builder.slot(builder.engine("chat", 1, serving={"gpuMemoryUtilization": "0.70"}), 0, "n1")
    for number in range(guests):
        builder.job(f"g{number:02}", 1, scheduling={"policy": "Shared", "share": "40%", "priority": 20})
    yields = {"policy": "ToHigherPriority", "minRunSeconds": 600}
    victim = builder.job("victim", 1, scheduling={"policy": "Queue", "priority": -10, "interruption": yields})
    began = NOW - timedelta(minutes=5)
    claim = builder.claim("n1").model_copy(update={"own_devices": 1})
    builder.trainer_pod(builder.stage_job(victim, claim=claim, created=began), "n1", bound_at=began)
    builder.job("urgent", 1, scheduling={"policy": "Queue", "priority": 10})
    assert allocated(builder).again_at == NOW + timedelta(minutes=5)


def test_pool_looks_again_when_a_borrow_window_ends() -> None:
    """From then on jobs wait for the next window, and no longer for the floor."""
    window = {"start": "11:00", "end": "12:30"}
    builder = WorldBuilder()
    builder.node(1)
    terms = {"policy": "ScaleDown", "minReplicas": 1, "borrowWindows": [window]}
    builder.slot(builder.engine("chat", 1, preemption=terms), 0, "n1")
    builder.job("a", 1)
    assert allocated(builder).again_at == NOW + timedelta(minutes=30)
    assert wait_of(builder, "a").reason is Reason.ENGINE_AT_FLOOR


def test_moment_of_another_day_has_its_date() -> None:
    builder = WorldBuilder()
    builder.node(1)
    yields = {"policy": "ToHigherPriority", "minRunSeconds": 31_536_000}
    victim = builder.job("victim", 1, scheduling={"interruption": yields})
    builder.trainer_pod(builder.stage_job(victim, claim=builder.claim("n1")), "n1")
    builder.job("urgent", 1, scheduling={"priority": 10})
    assert "wait until 2027-11-22" in wait_of(builder, "urgent").message


def test_node_that_could_never_take_the_job_is_not_told_of() -> None:
    """n2 is free, but its GPUs are too small: making room there helps nobody."""
    builder = WorldBuilder()
    builder.node(2, labels={"nvidia.com/gpu.memory": "81920"})
    builder.node(2, labels={"nvidia.com/gpu.memory": "40960"})
    holding(builder, "t", 2)
    builder.job("big", 1, resources={"gpuMemory": "80Gi"})
    wait = wait_of(builder, "big")
    assert wait.message.endswith("Next: t ends and gives back what it holds, or add 1 GPU to the pool.")
    assert "n2" not in wait.message


def test_lender_on_the_last_of_many_nodes_is_told_of() -> None:
    builder = WorldBuilder()
    for number in range(20):
        builder.node(1)
        holding(builder, f"t{number}", 1, f"n{number + 1}")
    builder.node(1)
    builder.slot(builder.engine("chat", 1, preemption={"policy": "ScaleDown", "minReplicas": 1}), 0, "n21")
    builder.job("a", 1)
    assert wait_of(builder, "a").reason is Reason.ENGINE_AT_FLOOR


def test_remedies_of_one_way_agree() -> None:
    """Two obstacles ask for a higher priority, one for 5 and one for 0: the reader is told 5, once."""
    builder = WorldBuilder()
    builder.node(3)
    holding(builder, "t", 1)
    engine = builder.engine("chat", 1, preemption={"policy": "ScaleDown", "minReplicas": 0, "priority": 0})
    builder.slot(engine, 0, "n1")
    builder.job("front", 3, scheduling={"policy": "Queue", "priority": 4})
    builder.job("low", 3, scheduling={"policy": "Preempt", "priority": -5})
    message = wait_of(builder, "low").message
    assert "raise scheduling.priority to 5" in message
    assert "raise scheduling.priority to 0" not in message


def test_priority_that_the_pool_does_not_allow_is_no_remedy() -> None:
    builder = WorldBuilder()
    builder.namespace("team", team="a")
    builder.pool(quotas=({"namespaces": {"matchLabels": {"team": "a"}}, "maxPriority": 3},))
    builder.node(1)
    holding(builder, "t", 1)
    builder.job("front", 1, scheduling={"policy": "Queue", "priority": 3})
    builder.job("a", 1, scheduling={"policy": "Queue"})
    assert "raise scheduling.priority" not in wait_of(builder, "a").message


@pytest.mark.parametrize(
    ("terms", "told"),
    [
        ({"reclaim": "OnDemand"}, "Next: set preemption.reclaim: Never on chat"),
        (
            {"reclaim": "OnDemand", "reclaimAbove": 10},
            "Next: remove preemption.reclaimAbove and set preemption.reclaim: Never on chat",
        ),
    ],
)
def test_remedy_is_one_that_the_api_server_takes(terms: dict[str, object], told: str) -> None:
    builder = WorldBuilder()
    builder.node(1)
    engine = builder.engine("chat", 2, preemption={"policy": "ScaleDown", "minReplicas": 0, **terms})
    builder.slot(engine, 0, "n1")
    builder.store.findings.begin_term(1, NOW - timedelta(hours=1))
    builder.job("a", 1)
    assert told in wait_of(builder, "a").message


def test_two_engines_of_one_name_are_told_apart() -> None:
    builder = WorldBuilder()
    builder.node(2)
    terms = {"policy": "ScaleDown", "minReplicas": 1, "lendTo": "Anywhere"}
    for namespace in ("team", "other"):
        builder.slot(builder.engine("chat", 1, namespace=namespace, preemption=terms), 0, "n1")
    builder.job("a", 2)
    message = wait_of(builder, "a").message
    assert "minReplicas of chat to 0" in message
    assert "minReplicas of other/chat to 0" in message


def test_what_a_daemon_set_takes_is_no_room_for_a_job() -> None:
    """The job that can never start is refused, and so keeps no free GPUs from those behind it."""
    builder = WorldBuilder()
    builder.node(4)
    builder.stranger("n1", 0, 1 << 30)
    (daemon,) = (pod for pod in builder.world.pods.values() if pod.key.namespace == "others")
    change(builder, daemon, daemon_set="exporter")
    builder.job("evil", 1, "evil", resources={"memory": "64Gi"})
    builder.job("good", 1)
    assert job_key("team", "good") in allocated(builder).claims
    found = refusal(builder.world, builder.world.jobs[job_key("evil", "evil")])
    assert found is not None
    assert found.message.startswith("spec.resources.memory: needs 64Gi, the node has 63Gi beside its DaemonSets.")


@pytest.mark.parametrize("zones", [("a",), ("a", "b")])
def test_nodes_that_a_volume_does_not_reach_are_kept_for_nobody(zones: tuple[str, ...]) -> None:
    """Its volume is in zone b. Without a node there the job is refused; with one, the nodes of zone a are others'."""
    builder = WorldBuilder()
    for zone in zones:
        builder.node(1, labels={"zone": zone})
    builder.job("evil", 1, "evil")
    volume_in_zone(builder, "evil", "adapters", "b")
    if "b" in zones:
        holding(builder, "t", 1, "n2")
    builder.job("good", 1)
    assert job_key("team", "good") in allocated(builder).claims
    found = refusal(builder.world, builder.world.jobs[job_key("evil", "evil")])
    assert (found is None) == ("b" in zones)


def test_address_that_names_a_missing_volume_claim_is_the_jobs_own() -> None:
    """Jobs that are alike are refused alike, and the field differs: they are not alike."""
    builder = WorldBuilder()
    builder.node(1)
    output = {"uri": "pvc://gone/out"}
    builder.job("one", 1, output=output, dataset={"uri": "pvc://gone/d"})
    builder.job("two", 1, output=output, dataset={"uri": "pvc://models/d"}, resumeFrom="pvc://gone/a")
    for name, field in (("one", "spec.dataset.uri"), ("two", "spec.output.uri")):
        found = refusal(builder.world, builder.world.jobs[job_key("team", name)])
        assert found is not None
        assert found.message.startswith(field)


def test_job_in_a_pause_is_woken_by_what_may_refuse_it() -> None:
    builder = WorldBuilder()
    builder.node(1)
    builder.job("a", 1, scheduling={"notBefore": "2026-11-23T00:00:00Z"})
    assert Key("Node", "", "") in decide(builder, "a").ends_with


def test_job_at_its_namespaces_limit_is_looked_at_when_the_load_may_be_less() -> None:
    """It may borrow from its own engine only, which has too much to do. No event tells of load."""
    builder = WorldBuilder()
    builder.namespace("team", team="a")
    builder.pool(quotas=({"namespaces": {"matchLabels": {"team": "a"}}, "maxTotalGPUs": 4},))
    builder.node(6)
    busy_engine(builder)
    builder.job("a", 2)
    assert allocated(builder).again_at == NOW + timedelta(seconds=5)


def test_pool_is_not_looked_at_for_load_that_binds_nobody() -> None:
    """One replica, at its floor: less load would help nobody."""
    builder = WorldBuilder()
    builder.node(1)
    terms = {"policy": "ScaleDown", "minReplicas": 1, "reclaim": "OnDemand", "reclaimAbove": 10}
    builder.slot(builder.engine("chat", 1, preemption=terms), 0, "n1")
    builder.store.findings.begin_term(1, NOW - timedelta(hours=1))
    builder.job("a", 1)
    assert allocated(builder).again_at is None


@pytest.mark.parametrize(("gpus", "nodes"), [(4, 1), (1, 2)])
def test_job_that_fits_only_where_its_volume_is_not_is_refused(gpus: int, nodes: int) -> None:
    """n1 has 4 GPUs, and its volume is in zone b with n2 and its one GPU."""
    builder = WorldBuilder()
    builder.node(4, labels={"zone": "a"})
    builder.node(1, labels={"zone": "b"})
    job = builder.job("a", gpus, resources={"nodes": nodes})
    volume_in_zone(builder, "team", "adapters", "b")
    found = refusal(builder.world, job)
    assert found is not None
    assert "that can mount the volume of volume claim adapters" in found.message
    assert Key("PersistentVolume", "", "") in found.ends_with
    assert refusal(builder.world, job, nodes_may_come=True) is None, "a node that is large enough may come"


def test_pods_of_a_daemon_set_that_is_changed_count_once() -> None:
    builder = WorldBuilder()
    builder.node(1)
    for _ in range(2):
        builder.stranger("n1", 0, 1 << 30)
    for pod in [pod for pod in builder.world.pods.values() if pod.key.namespace == "others"]:
        change(builder, pod, daemon_set="exporter")
    assert refusal(builder.world, builder.job("a", 1, resources={"memory": "63Gi"})) is None


def test_job_too_large_for_the_nodes_with_enough_gpus_is_told_so() -> None:
    """n1 has the GPUs and n2 has the memory: no number of pods would do."""
    builder = WorldBuilder()
    builder.node(4, memory=4 << 30)
    builder.node(1, memory=512 << 30)
    found = refusal(builder.world, builder.job("a", 2, resources={"memory": "100Gi"}))
    assert found is not None
    assert (found.reason, found.message) == (
        Reason.EXCEEDS_EVERY_NODE,
        "spec.resources.memory: needs 100Gi, the node has 4Gi. Lower it, or add a larger node.",
    )
