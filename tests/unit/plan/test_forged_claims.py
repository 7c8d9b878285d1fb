"""What is believed of a Job with a claim: who may create Jobs may write names, labels, owners and annotations."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from sluice_api.claim import AttemptRef, Claim, NodeAllocation, SlotRef
from sluice_api.inferenceengine import SlotState, SlotStatus
from sluice_api.reasons import Reason
from sluice_api.stages import Stage, StageOutcome, TrainResult
from sluice_operator.facts.live_claims import live_claims
from sluice_operator.facts.nodes import find_pool
from sluice_operator.facts.outcomes import all_outcomes
from sluice_operator.observe.parse import Unreadable
from sluice_operator.observe.views import Key, Owner, StageJobView, Termination
from sluice_operator.observe.world import engine_key, existing, job_key
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.job.decide import plan_job
from sluice_operator.reconcile.give_back import missing
from sluice_operator.settings import Limits
from tests.unit.plan.node_requests import bound, made, removed
from tests.unit.plan.worlds import (
    GPU,
    NOW,
    PREPARED,
    WorldBuilder,
    allocated,
    change,
    decide,
    describe,
    parse,
    planned_status,
)

CHAT = [SlotRef(namespace="prod", engine="chat", index=index) for index in range(3)]


class Forged:
    """An engine of `prod` that serves, a job of `evil`, and the Job that somebody made for it."""

    def __init__(self, **terms: Any) -> None:
        self.builder = WorldBuilder()
        self.builder.node(4)
        self.engine = self.builder.engine(
            "chat", 3, "prod", preemption={"policy": "ScaleDown", "minReplicas": 0, **terms}
        )
        for index in range(3):
            self.builder.slot(self.engine, index, "n1")
        self.job = self.builder.job("x", 3, "evil")

    def claims(self, *slots: SlotRef, **changes: Any) -> StageJobView:
        """Its Job, with a pod that runs on the node."""
        claim = self.builder.claim("n1", *slots, gpus=3)
        stage_job = self.builder.stage_job(self.job, claim=claim.model_copy(update=changes.pop("claim", {})))
        if changes:
            change(self.builder, stage_job, **changes)
            stage_job = replace(stage_job, **changes)
        self.builder.trainer_pod(stage_job, "n1")
        return stage_job

    def states(self) -> list[SlotState]:
        engine = self.builder.world.engines[engine_key("prod", "chat")]
        return [slot.state for slot in planned_status(self.builder.world, engine, NOW).slots]

    def says(self, *slots: SlotStatus) -> None:
        """The engine's status."""
        status = self.engine.status.model_copy(update={"slots": slots})
        metadata = self.engine.metadata.model_copy(update={"resource_version": "999"})
        self.builder.put(self.engine.model_copy(update={"status": status, "metadata": metadata}))


SERVING, STOPPING = [SlotState.SERVING] * 3, [SlotState.STOPPING] * 3


@pytest.mark.parametrize(
    ("rule", "terms", "expected"),
    [
        ("an engine that lends to anybody makes room", {"lendTo": "Anywhere"}, STOPPING),
        ("one that never lends does not", {"lendTo": "Anywhere", "policy": "Never"}, SERVING),
        ("nor one that lends to its own namespace", {"lendTo": "SameNamespace"}, SERVING),
        ("nor one that outranks the job", {"lendTo": "Anywhere", "priority": 1}, SERVING),
        (
            "nor one that lends to others",
            {"lendTo": "Selected", "lendToNamespaces": {"matchLabels": {"kubernetes.io/metadata.name": "team"}}},
            SERVING,
        ),
    ],
)
def test_forged_claim_takes_no_replica_that_cannot_be_lent(rule: str, terms: Any, expected: list[SlotState]) -> None:
    forged = Forged(**terms)
    forged.claims(*CHAT)
    assert forged.states() == expected, rule


def test_a_loan_that_has_begun_outlives_its_terms() -> None:
    forged = Forged(policy="Never")
    forged.claims(*CHAT)
    forged.says(*(SlotStatus(index=i, state=SlotState.DRAINING, lent_to="evil/x", since=NOW) for i in range(3)))
    assert forged.states() == STOPPING


def test_forged_claim_borrows_no_slot_that_cannot_exist() -> None:
    forged = Forged(lendTo="Anywhere")
    forged.claims(SlotRef(namespace="prod", engine="chat", index=7))
    (live,) = live_claims(forged.builder.world)
    assert live.claim.borrowed == ()


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("another name than its job, stage and attempt give", {"key": Key("Job", "evil", "anything")}),
        ("another attempt than its name says", {"attempt": 2}),
        ("a job of that name that is gone", {"owner": Owner("FineTuneJob", "x", "another-uid")}),
        ("an owner of another kind", {"owner": Owner("CronJob", "x", "jobx-evil")}),
        ("more GPUs than the job asks for", {"claim": {"gpus": 4}}),
        ("another pool than the job asks for", {"claim": {"pool": "other"}}),
        ("more pods than the job asks for", {"claim": {"places": (NodeAllocation(node="n1", pods=2),)}}),
    ],
)
def test_forged_batch_job_claims_nothing(rule: str, changes: dict[str, Any]) -> None:
    forged = Forged(lendTo="Anywhere")
    claim = forged.builder.claim("n1", *CHAT, gpus=3).model_copy(update=changes.pop("claim", {}))
    made = forged.builder.stage_job(forged.job, claim=claim)
    forged.builder.store.remove(made.key, made.uid)
    forged.builder.trainer_pod(replace(made, uid="forged", **changes), "n1")
    forged.builder.put(replace(made, uid="forged", resource_version=900, **changes))
    assert live_claims(forged.builder.world) == [], rule
    assert forged.states() == SERVING, rule


def test_claim_above_the_gpus_of_its_job_is_replaced() -> None:
    builder = WorldBuilder()
    builder.node(4)
    job = builder.job("a", 1)
    forged = builder.stage_job(job, claim=builder.claim("n1", gpus=4))
    decision = decide(builder, "a")
    assert decision.delete == (forged,)
    assert decision.record is not None
    assert decision.record.of(Stage.TRAIN)[-1].reason == Reason.CLAIMED


def test_claim_that_borrows_from_policy_never_is_given_up() -> None:
    forged = Forged(policy="Never")
    made = forged.builder.stage_job(forged.job, claim=forged.builder.claim("n1", *CHAT, gpus=3))
    forged.builder.trainer_pod(made)
    builder = forged.builder
    decision = plan_job(builder.world, builder.world.jobs[job_key("evil", "x")], NOW, Limits())
    assert (decision.reason, decision.delete, decision.bind) == (Reason.CLAIMED, (made,), ())


def test_claim_of_a_term_after_the_lease_displaces_no_claim() -> None:
    builder = WorldBuilder()
    builder.node(1)
    honest = builder.stage_job(builder.job("honest"), claim=builder.claim("n1"))
    builder.trainer_pod(honest)
    builder.trainer_pod(builder.stage_job(builder.job("x", 1, "evil"), claim=builder.claim("n1", term=2**53 - 1)))
    assert decide(builder, "honest").delete == ()


def test_forged_preemption_of_interruption_policy_never_is_ignored() -> None:
    """The trainer is not stopped, and its end is not taken for a preemption."""
    builder = WorldBuilder()
    builder.node(2)
    trains = builder.stage_job(builder.job("trains"), claim=builder.claim("n1"))
    pod = builder.trainer_pod(trains, "n1")
    ref = AttemptRef(namespace="team", job="trains", uid=trains.uid, gpus=1)
    evil = builder.job("x", 1, "evil", scheduling={"policy": "Queue", "priority": 1000})
    place = NodeAllocation(node="n1", preempted=(ref,))
    claim = Claim(pool="default", resource=GPU, gpus=1, places=(place,), term=1)
    builder.trainer_pod(builder.stage_job(evil, claim=claim), "n1")
    assert decide(builder, "trains").delete == ()
    change(builder, pod, ended=True, termination=Termination(75, "Error", "", NOW))
    change(builder, trains, finished="Failed", finished_at=NOW)
    assert [attempt.reason for attempt in _outcomes(builder, "trains")][-1:] == [Reason.REQUEUED]


def _outcomes(builder: WorldBuilder, name: str) -> tuple[Any, ...]:
    return all_outcomes(builder.world, builder.world.jobs[job_key("team", name)]).of(Stage.TRAIN)


def test_batch_job_of_another_namespace_is_ignored() -> None:
    """Anybody who knows a uid can name it as an owner. The garbage collector removes such an object only later."""
    builder = WorldBuilder()
    builder.node(1)
    job = builder.job("tone")
    builder.trainer_pod(builder.stage_job(job, claim=builder.claim("n1")), "n1")
    before = decide(builder, "tone")
    said = StageOutcome(reason="Done", train=TrainResult(step=1, total_steps=1, checkpoint_step=1)).to_json()
    forged = builder.stage_job(job, attempt=7, finished="Complete", finished_at=NOW)
    builder.store.remove(forged.key, forged.uid)
    forged = replace(forged, key=forged.key._replace(namespace="evil"), uid="forged", resource_version=900)
    builder.put(forged)
    builder.trainer_pod(forged, "n1", ended=True, termination=Termination(0, "Completed", said, NOW))
    slot = builder.slot(builder.engine("chat", 1, "prod"), 0, "n1")
    assert slot is not None
    assert decide(builder, "tone") == before


def test_deployment_with_a_forged_owner_is_no_slot() -> None:
    forged = Forged()
    slot = next(iter(forged.builder.world.slots.values()))
    for number, key in enumerate((Key("Deployment", "evil", "chat-9"), Key("Deployment", "prod", "other-9"))):
        forged.builder.put(replace(slot, key=key, uid=f"forged-{number}", index=9, resource_version=900 + number))
    assert sorted(existing(forged.builder.world, forged.engine)) == [0, 1, 2]


def test_unreadable_claim_ends_with_its_pods() -> None:
    """Else a tenant that relabels a finished Job keeps its claim, and what it borrows, until its deadline."""
    builder = WorldBuilder()
    builder.node(1)
    stage_job = builder.stage_job(builder.job("a"), claim=builder.claim("n1"))
    pod = builder.trainer_pod(stage_job, "n1")
    builder.put(Unreadable(stage_job.key, stage_job.uid, 900, "label sluice.dev/attempt: x"))
    assert [live.name for live in live_claims(builder.world)] == ["team/a"]
    change(builder, pod, ended=True)
    assert live_claims(builder.world) == []
    assert [doomed.key for doomed in decide(builder, "a").delete] == [stage_job.key]


@pytest.mark.parametrize(
    ("rule", "changes", "free"),
    [
        ("a pod that asks for a node has what anybody may have", {}, 2),
        ("one that is going at once too, until it is gone", {"deleting": True}, 2),
        ("one that would take its time keeps it", {"goes_at_once": False}, 1),
        ("one that takes its time to go keeps it", {"goes_at_once": False, "deleting": True}, 1),
        ("one of another name is a pod like any other", {"key": Key("Pod", "team", "mine")}, 1),
    ],
)
def test_scale_up_pod_counts_as_free_if_it_goes_at_once(rule: str, changes: dict[str, Any], free: int) -> None:
    builder = WorldBuilder()
    builder.node(2)
    pod = builder.scale_up_pod(builder.job("a", scheduling={"scaleUpFirst": {}}), 0, "n1")
    builder.store.remove(pod.key, pod.uid)
    builder.put(replace(pod, uid="again", resource_version=900, **changes))
    pool = find_pool(builder.world, "default")
    assert pool is not None
    assert take_stock(builder.world, pool).nodes["n1"].free == free, rule


def test_scale_up_pod_with_a_finalizer_goes_once_it_has_a_node() -> None:
    """A webhook has given it a finalizer, as Kueue does with plain pods (kueue#1339), or a grace period."""
    builder = parse("pool: 1 gpus | a: needs 1, scales")
    change(builder, bound(builder, "a", "n1"), goes_at_once=False)
    assert describe(allocated(builder)) == "a waits ScalingUp"
    assert (made(builder), removed(builder)) == ([], ["a"])

    (pod,) = builder.world.scale_ups["default"].values()
    change(builder, pod, deleting=True)
    assert (made(builder), removed(builder)) == ([], []), "its name is taken until it is gone"
    assert "scaleUps" not in missing(builder.world), "nor does whoever uninstalls Sluice wait for it"


def test_wait_does_not_begin_before_the_job_was_created() -> None:
    """With ageingSeconds, a record with an older time would raise the job for ever."""
    builder = WorldBuilder()
    builder.pool(ageingSeconds=60)
    builder.node(1)
    builder.job("honest", scheduling={"policy": "Queue", "priority": 2})
    long_ago = PREPARED.model_copy(update={"ended_at": NOW - timedelta(days=10_000)})
    builder.clock = NOW - timedelta(seconds=30)
    builder.job("x", 1, "evil", outcomes=(long_ago,), scheduling={"policy": "Queue"})
    assert describe(allocated(builder)) == "honest takes n1; x waits WaitingForGPUs"


def test_claim_on_a_slot_that_is_removed_is_believed_while_its_pod_is_there() -> None:
    """Seen in the stories: scaled down, the slot was lent, its Deployment was gone, and the claim was given up."""
    forged = Forged(lendTo="Anywhere")
    builder = forged.builder
    builder.version += 1
    metadata = forged.engine.metadata.model_copy(update={"resource_version": str(builder.version)})
    spec = forged.engine.spec.model_copy(update={"replicas": 2})
    builder.put(forged.engine.model_copy(update={"spec": spec, "metadata": metadata}))
    (slot,) = [slot for slot in builder.world.slots.values() if slot.index == 2]
    builder.store.remove(slot.key, slot.uid)
    forged.claims(CHAT[2])
    assert [live.claim.borrowed for live in live_claims(builder.world)] == [(CHAT[2],)]
    (pod,) = [pod for pod in builder.world.pods.values() if pod.labels.get("sluice.dev/slot") == "2"]
    builder.store.remove(pod.key, pod.uid)
    assert [live.claim.borrowed for live in live_claims(builder.world)] == [()]
