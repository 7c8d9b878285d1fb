"""GPUs that DRA serves: how they are counted, who gets them, who lends them."""

from collections.abc import Callable
from typing import Any

import pytest

from sluice_api.claim import NodeAllocation, SlotRef
from sluice_api.reasons import Reason
from sluice_operator.facts.nodes import find_pool
from sluice_operator.observe.views import Owner, Taint
from sluice_operator.observe.world import job_key
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.pool.refusals import refusal
from sluice_operator.status.pool import pool_status, pool_usage
from tests.unit.plan.dra import BY_DRA, DRIVER, SLEEPS, DraWorldBuilder
from tests.unit.plan.worlds import NOW, WorldBuilder, allocated, describe, planned_status

CHAT_0 = SlotRef(namespace="team", engine="chat", index=0)


def counted(builder: WorldBuilder, name: str = "default") -> str:
    pool = find_pool(builder.world, name)
    assert pool is not None
    usage = pool_usage(builder.world, pool)
    kinds = ("gpus", "inference", "training", "lent", "others", "free")
    return ", ".join(f"{getattr(usage, kind)} {kind}" for kind in kinds if getattr(usage, kind) or kind == "gpus")


def said(builder: WorldBuilder, name: str = "default") -> tuple[str, str]:
    pool = find_pool(builder.world, name)
    assert pool is not None
    (ready,) = pool_status(builder.world, take_stock(builder.world, pool), 0, NOW).conditions
    return ready.reason, ready.message


def a_slot(builder: DraWorldBuilder) -> None:
    builder.serving("chat", "n1")


def a_slot_and_its_guest(builder: DraWorldBuilder) -> None:
    builder.serving("chat", "n1")
    builder.visits(builder.job("a", scheduling={"policy": "Shared"}), "n1", CHAT_0)


def a_slot_known_by_its_pod_alone(builder: DraWorldBuilder) -> None:
    engine = builder.engine("chat", 1)
    WorldBuilder.slot(builder, engine, 0, "n1")
    builder.slot_has(engine, 0, "")


def a_slot_known_by_its_claim_alone(builder: DraWorldBuilder) -> None:
    engine = builder.engine("chat", 1)
    WorldBuilder.slot(builder, engine, 0, "")
    builder.slot_has(engine, 0, "n1")


def a_slot_that_has_only_an_old_pod_left(builder: DraWorldBuilder) -> None:
    builder.slot_has(builder.engine("chat", 1), 0, "n1")


def training(builder: DraWorldBuilder) -> None:
    builder.trains(builder.job("a", 2), "n1")


def training_of_an_attempt_that_is_over(builder: DraWorldBuilder) -> None:
    builder.trains(builder.job("a", 2, suspend=True), "n1")


def a_loan(builder: DraWorldBuilder) -> None:
    builder.serving("chat", "n1", preemption=SLEEPS)
    builder.trains(builder.job("a", 2), "n1", CHAT_0, own=1)


def strangers(builder: DraWorldBuilder) -> None:
    builder.has("theirs", "n1", 3, namespace="others")
    builder.has("not-yet", "", 1, namespace="others")


def a_stranger_who_calls_it_a_slots(builder: DraWorldBuilder) -> None:
    builder.engine("chat", 0)
    labels = {"sluice.dev/engine": "chat", "sluice.dev/slot": "0"}
    builder.has("chat-0-gpus", "n1", 1, owner=Owner("Deployment", "else", "else"), labels=labels)


def another_driver(builder: DraWorldBuilder) -> None:
    builder.offers("n1", 8, driver="nic.example.com")


def a_newer_generation(builder: DraWorldBuilder) -> None:
    builder.offers("n1", 3, generation=2)


@pytest.mark.parametrize(
    ("scene", "expected"),
    [
        (lambda _: None, "4 gpus, 4 free"),
        (another_driver, "4 gpus, 4 free"),
        (a_newer_generation, "3 gpus, 3 free"),
        (a_slot, "4 gpus, 1 inference, 3 free"),
        (a_slot_and_its_guest, "4 gpus, 1 inference, 3 free"),
        (a_slot_known_by_its_pod_alone, "4 gpus, 1 inference, 3 free"),
        (a_slot_known_by_its_claim_alone, "4 gpus, 1 inference, 3 free"),
        (a_slot_that_has_only_an_old_pod_left, "4 gpus, 1 inference, 3 free"),
        (training, "4 gpus, 2 training, 2 free"),
        (training_of_an_attempt_that_is_over, "4 gpus, 2 training, 2 free"),
        (a_loan, "4 gpus, 2 training, 1 lent, 2 free"),
        (strangers, "4 gpus, 3 others, 1 free"),
        (a_stranger_who_calls_it_a_slots, "4 gpus, 1 others, 3 free"),
    ],
)
def test_gpus_are_counted_by_resource_slices_and_claims(
    scene: Callable[[DraWorldBuilder], None], expected: str
) -> None:
    builder = DraWorldBuilder(4)
    scene(builder)
    assert counted(builder) == expected


def test_slot_with_an_unallocated_claim_is_on_its_pods_node() -> None:
    """Else the job would get both GPUs of n2."""
    builder = DraWorldBuilder(1, 2)
    engine = builder.engine("chat", 1)
    WorldBuilder.slot(builder, engine, 0, "n2")
    builder.slot_has(engine, 0, "")
    builder.job("a", 2, scheduling={"policy": "Queue"})
    assert describe(allocated(builder)) == "a waits WaitingForGPUs"


def test_pool_of_a_device_plugin_ignores_resource_claims() -> None:
    builder = WorldBuilder()
    builder.node(2)
    builder.engine("chat", 0)
    builder.has("theirs", "n1", 1)
    assert counted(builder) == "2 gpus, 2 free"


def test_no_nodes_message_names_nodes_with_gpus_by_dra() -> None:
    builder = DraWorldBuilder(4, 4, sharing={"mode": "None"})
    reason, message = said(builder)
    assert reason == Reason.NO_NODES
    assert message == (
        "0 of 0 nodes take pods. n1, n2 offer GPUs by DRA (gpu.nvidia.com), which this pool does not count. "
        "Set spec.sharing.mode: DRA in a GPUPool that selects them."
    )
    found = refusal(builder.world, builder.job("a"))
    assert found is not None
    assert (found.reason, found.message) == (
        Reason.NO_NODES,
        "spec.resources.pool: pool default has no node that offers nvidia.com/gpu. n1, n2 offer GPUs by DRA "
        "(gpu.nvidia.com), which this pool does not count. Set spec.sharing.mode: DRA in a GPUPool that selects them.",
    )


def test_no_nodes_message_omits_nodes_of_a_dra_pool() -> None:
    builder = DraWorldBuilder(4, sharing={"mode": "None"})
    builder.pool("devices", **BY_DRA)
    assert said(builder) == (Reason.NO_NODES, "0 of 0 nodes take pods.")
    assert counted(builder, "devices") == "4 gpus, 4 free"


def test_dra_not_served_is_said_by_pool_engine_and_job() -> None:
    builder = DraWorldBuilder()
    builder.store.serves_dra = False
    ready = planned_status(builder.world, builder.engine("chat", 1)).conditions[0]
    assert (ready.reason, "does not serve resource.k8s.io/v1" in ready.message) == (Reason.DRA_NOT_SERVED, True)
    reason, message = said(builder)
    assert (reason, "does not serve resource.k8s.io/v1" in message) == (Reason.DRA_NOT_SERVED, True)
    told = refusal(builder.world, builder.job("a"))
    assert told is not None
    assert told.reason is Reason.DRA_NOT_SERVED
    assert "does not serve resource.k8s.io/v1" in told.message


def test_job_gets_free_gpus_as_own_devices() -> None:
    builder = DraWorldBuilder(1, 4)
    builder.job("a", 2)
    (claim,) = allocated(builder).claims.values()
    assert (claim.resource, claim.nodes, claim.own_devices) == (DRIVER, ("n2",), 2)


def test_pool_is_counted_by_its_device_class() -> None:
    builder = DraWorldBuilder(2, sharing={"mode": "DRA", "deviceClass": "gpu.example.com"})
    builder.offers("n1", 5, driver="gpu.example.com")
    assert counted(builder) == "5 gpus, 5 free"


@pytest.mark.parametrize("taint", ["gpu.nvidia.com", "nvidia.com/gpu"])
def test_taint_with_the_name_of_the_gpus_is_tolerated(taint: str) -> None:
    builder = DraWorldBuilder()
    builder.node(1, taints=(Taint(taint, "", "NoSchedule"),))
    builder.job("a")
    assert describe(allocated(builder)) == "a takes n1"


# Who lends


@pytest.mark.parametrize(
    ("rule", "terms", "job", "expected"),
    [
        ("a replica that sleeps keeps its devices", SLEEPS, {}, "a takes chat/0"),
        ("one that stops could lose them", {"policy": "ScaleDown", "minReplicas": 0}, {}, "a waits EngineMustSleep"),
        ("a ResourceClaim is its namespace's", {**SLEEPS, "lendTo": "Anywhere"}, {"namespace": "other"},
         "a waits EngineLendsElsewhere"),
        ("pods of a group have one template", SLEEPS, {"resources": {"nodes": 2}}, "a waits MultiNodeBorrowsNone"),
    ],
)  # fmt: skip
def test_dra_loan_needs_sleep_one_pod_and_the_same_namespace(
    rule: str, terms: dict[str, Any], job: dict[str, Any], expected: str
) -> None:
    builder = DraWorldBuilder(1, 1)
    builder.serving("chat", "n1", "n2", preemption=terms)
    builder.job("a", **job)
    assert describe(allocated(builder)) == expected, rule


def test_terms_of_multi_node_and_single_node_jobs_differ() -> None:
    """Whichever comes first: the terms worked out for one are not used for the other."""
    builder = DraWorldBuilder(1, 1)
    builder.serving("chat", "n1", "n2")
    builder.job("group", resources={"nodes": 2}, scheduling={"policy": "Preempt", "priority": 5})
    builder.job("single", scheduling={"policy": "Preempt", "priority": 5})
    assert describe(allocated(builder)) == "group waits MultiNodeBorrowsNone; single takes chat/0"


def test_own_devices_are_the_gpus_that_are_not_borrowed() -> None:
    builder = DraWorldBuilder(4)
    builder.serving("chat", "n1", "n1")
    builder.job("a", 3)
    (claim,) = allocated(builder).claims.values()
    assert [place.borrowed for place in claim.places] == [(SlotRef(namespace="team", engine="chat", index=1),)]
    assert claim.own_devices == 2


def test_engine_must_sleep_message_names_the_policy() -> None:
    builder = DraWorldBuilder(1)
    builder.serving("chat", "n1", preemption={"policy": "ScaleDown", "minReplicas": 0})
    builder.job("a")
    message = allocated(builder).waits[job_key("team", "a")].message
    assert "chat has preemption.policy: ScaleDown, and its GPUs are served by DRA." in message
    assert "Next: set preemption.policy: Sleep on chat, or add 1 GPU" in message


def test_node_allocation_survives_json() -> None:
    place = NodeAllocation(node="n1", beside=CHAT_0)
    assert NodeAllocation.model_validate_json(place.to_json()) == place
