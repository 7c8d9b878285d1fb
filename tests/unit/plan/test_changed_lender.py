"""Where DRA serves the GPUs nothing but Sluice keeps a replica and a trainer apart, whatever the policy is by now."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from sluice_api.inferenceengine import LendingPolicy, SlotState
from sluice_api.meta import slot_gpus_name
from sluice_api.reasons import Reason
from sluice_operator.facts.sleeping import being_used
from sluice_operator.observe.views import DeviceClaimView, Key, Owner, PodView
from tests.unit.plan.test_claim_cycle import states
from tests.unit.plan.test_sleeping import SleepingLoan
from tests.unit.plan.worlds import NOW

SERVING, STARTING, LENT = SlotState.SERVING, SlotState.STARTING, SlotState.LENT
OTHERS = [LendingPolicy.NEVER, LendingPolicy.SCALE_DOWN]


def lends(loan: SleepingLoan, policy: LendingPolicy) -> None:
    """The policy is another from now on."""
    loan.respec(preemption=loan.engine.spec.preemption.model_copy(update={"policy": policy}))


def sizes(loan: SleepingLoan, after: float) -> list[int]:
    """How many pods each slot has once a decision is carried out."""
    decision = loan.plan_engine(after)
    new = {plan.index: plan.size for plan in decision.apply} | {slot.index: 0 for slot in decision.stop}
    return [new.get(slot.index, slot.size) for slot in loan.builder.world.slots.values()]


def gone(loan: SleepingLoan) -> None:
    """The trainer's pod has saved its state and is gone."""
    loan.builder.store.remove(loan.pod.key, loan.pod.uid)


def slot_stops(loan: SleepingLoan) -> None:
    """The lent slot goes to 0, and its pod is gone."""
    loan.put_slot(1, size=0)
    pod = loan.lent_pod()
    loan.builder.store.remove(pod.key, pod.uid)


def has_devices(loan: SleepingLoan) -> None:
    """The lent slot's ResourceClaim, which the trainer uses too."""
    loan.builder.version += 1
    loan.builder.put(
        DeviceClaimView(
            key=Key("ResourceClaim", "team", slot_gpus_name("chat", 1)),
            uid="chat-1-gpus",
            resource_version=loan.builder.version,
            created=NOW,
            owner=Owner("InferenceEngine", "chat", loan.engine.metadata.uid),
            labels={"sluice.dev/engine": "chat", "sluice.dev/slot": "1"},
            node="n1",
            devices={loan.builder.counted_as: 1},
            asks=(loan.builder.counted_as, 1),
        )
    )


@pytest.mark.parametrize("policy", OTHERS)
def test_policy_change_wakes_no_slot_while_its_trainer_saves(policy: LendingPolicy) -> None:
    loan = SleepingLoan()
    loan.train()
    loan.stop()
    lends(loan, policy)
    assert (states(loan.plan_engine(5)), sizes(loan, 5)) == ([SERVING, LENT], [1, 1])
    gone(loan)
    assert states(loan.plan_engine(6)) == [SERVING, STARTING]


@pytest.mark.parametrize("policy", [*OTHERS, LendingPolicy.SLEEP])
@pytest.mark.parametrize("job", ["is suspended", "is gone with its Job"])
def test_policy_change_restarts_no_slot_while_its_trainer_saves(policy: LendingPolicy, job: str) -> None:
    loan = SleepingLoan()
    loan.train()
    has_devices(loan)
    lends(loan, LendingPolicy.SCALE_DOWN)
    decision = loan.plan_engine(4)
    assert [slot.index for slot in decision.stop] == [1]
    loan.engine_says(loan.status(4))
    slot_stops(loan)
    lends(loan, policy)
    loan.stop()
    if job != "is suspended":
        loan.builder.store.remove(loan.stage_job.key, loan.stage_job.uid)
    assert (states(loan.plan_engine(5)), sizes(loan, 5)) == ([SERVING, LENT], [1, 0])
    gone(loan)
    assert sizes(loan, 6) == [1, 1]


@pytest.mark.parametrize("policy", OTHERS)
@pytest.mark.parametrize("step", ["it drains", "it falls asleep", "it sleeps"])
def test_unbound_claim_ends_when_policy_is_no_longer_sleep(policy: LendingPolicy, step: str) -> None:
    loan = SleepingLoan()
    match step:
        case "it drains":
            loan.drain()
        case "it falls asleep":
            loan.drain()
            loan.engine_says(loan.status(1))
        case _:
            loan.sleep()
    lends(loan, policy)
    decision = loan.plan_job(3)
    assert (decision.reason, decision.bind) == (Reason.ENGINE_MUST_SLEEP, ())
    assert decision.delete == (loan.stage_job,)
    assert f"preemption.policy is {policy} now" in decision.message
    assert sizes(loan, 3) == [1, 1]


@pytest.mark.parametrize("pod", ["is on its node", "is nominated to it"])
def test_trainer_of_a_deleted_job_is_found_without_a_scan_of_pods(pod: str) -> None:
    """The planner asks for each sleeping slot, after every change."""
    loan = SleepingLoan()
    loan.train()
    if pod == "is nominated to it":
        loan.put(loan.pod, node="")
    loan.builder.store.remove(loan.stage_job.key, loan.stage_job.uid)
    world = replace(loan.builder.world, pods=Unscanned(loan.builder.world.pods), memo={})
    assert being_used(world, loan.engine) == {1: "team/a"}


class Unscanned(dict[Key, PodView]):
    """Pods that one can only ask for by name."""

    def values(self) -> Any:
        raise AssertionError("every pod was looked at")

    def __iter__(self) -> Iterator[Key]:
        raise AssertionError("every pod was looked at")

    items = values
