"""Who may have how much of a pool, from whom, and when: quotas, selectors, windows, deadlines."""

from datetime import timedelta
from typing import Any

import pytest

from dev.simulate.cluster import Cluster
from sluice_api.claim import AttemptOutcome, SlotRef
from sluice_api.finetunejob import FineTuneJob, Progress
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.reasons import Reason
from sluice_api.stages import Stage
from sluice_operator.facts.nodes import find_pool
from sluice_operator.observe.world import engine_key, job_key
from sluice_operator.plan.engine.decide import plan_engine
from sluice_operator.plan.job.decide import plan_job
from sluice_operator.plan.job.situation import JobDecision
from sluice_operator.settings import Limits
from tests.unit.plan.worlds import NOW, PREPARED, WorldBuilder, allocated, describe, parse, planned_status

TEAM = {"matchLabels": {"kubernetes.io/metadata.name": "team"}}
LAB = {"matchLabels": {"tier": "research"}}


@pytest.mark.parametrize(
    ("rule", "world", "pool", "expected"),
    [
        ("a namespace has no more than its quota",
         "pool: 4 gpus | a: needs 1, on n1 | b: needs 1 | c: needs 1",
         {"quotas": [{"maxGPUs": 2}]},
         "b takes n1; c waits NamespaceQuota"),
        ("who is over its quota holds nobody back",
         "pool: 4 gpus | a: needs 1, on n1 | b: needs 1 | c: needs 1, in lab",
         {"quotas": [{"namespaces": TEAM, "maxGPUs": 1}]},
         "b waits NamespaceQuota; c takes n1"),
        ("what a job in front waits for counts in the quota",
         "pool: 3 2 gpus | c: needs 3, on n1, in lab | a: needs 3, queue | b: needs 1, queue "
         "| d: needs 1, queue, in lab",
         {"quotas": [{"namespaces": TEAM, "maxGPUs": 3}]},
         "a waits WaitingForGPUs; b waits NamespaceQuota; d takes n2"),
        ("what a job in front may borrow counts in the quota",
         "pool: 4 3 gpus | c: needs 4, on n1, in lab | chat: 3 replicas | dear: 0 replicas, floor 0 "
         "| a: needs 4, priority 5 | b: needs 1",
         {"quotas": [{"namespaces": TEAM, "maxBorrowedGPUs": 4}]},
         "a waits WaitingForGPUs; b waits BehindInQueue"),
        ("a smaller job of the namespace does not take the quota first",
         "pool: 4 gpus | a: needs 1, on n1 | b: needs 2, queue | c: needs 1, queue | d: needs 1, queue, in lab",
         {"quotas": [{"namespaces": TEAM, "maxGPUs": 2}]},
         "b waits NamespaceQuota; c waits NamespaceQuota; d takes n1"),
        ("the first quota that selects a namespace holds",
         "pool: 4 gpus | a: needs 2",
         {"quotas": [{"namespaces": TEAM, "maxGPUs": 3}, {"maxGPUs": 1}]},
         "a takes n1"),
        ("a quota is of each namespace, not of all together",
         "pool: 4 gpus | a: needs 1 | b: needs 1, in lab",
         {"quotas": [{"maxGPUs": 1}]},
         "a takes n1; b takes n1"),
        ("a namespace borrows no more than its quota",
         "pool: 3 gpus | chat: 3 replicas | a: needs 1 | b: needs 1",
         {"quotas": [{"maxBorrowedGPUs": 1}]},
         "a takes chat/2; b waits NamespaceQuota"),
        ("what is lent already counts",
         "pool: 3 gpus | chat: 3 replicas | a: needs 1, takes chat/0 on n1 | b: needs 1",
         {"quotas": [{"maxBorrowedGPUs": 1}]},
         "b waits NamespaceQuota"),
        ("free GPUs are not borrowed",
         "pool: 3 gpus | chat: 1 replicas | a: needs 1 | b: needs 1",
         {"quotas": [{"maxBorrowedGPUs": 0}]},
         "a takes n1; b takes n1"),
        ("who may not borrow keeps nobody else from borrowing",
         "pool: 2 gpus | chat: 2 replicas, anywhere | a: needs 1 | b: needs 1, in lab",
         {"quotas": [{"namespaces": TEAM, "maxBorrowedGPUs": 0}]},
         "a waits NamespaceQuota; b takes chat/1"),
        ("a job of policy Queue keeps nobody else from borrowing",
         "pool: 2 gpus | chat: 2 replicas | a: needs 1, queue | b: needs 1",
         {},
         "a waits WaitingForGPUs; b takes chat/1"),
        ("maxTotalGPUs counts replicas and jobs together",
         "pool: 4 gpus | chat: 2 replicas, never | a: needs 1 | b: needs 1",
         {"quotas": [{"namespaces": TEAM, "maxTotalGPUs": 3}]},
         "a takes n1; b waits NamespaceQuota"),
        ("maxTotalGPUs counts what a namespace lends to itself once: no more is in use, and free GPUs stay free",
         "pool: 4 gpus | chat: 2 replicas, floor 0 | a: needs 1 | b: needs 1 | c: needs 1",
         {"quotas": [{"namespaces": TEAM, "maxTotalGPUs": 2}]},
         "a takes chat/1; b takes chat/0; c waits NamespaceQuota"),
        ("maxTotalGPUs counts a loan that has begun once",
         "pool: 4 gpus | chat: 2 replicas, floor 0 | a: needs 1, takes chat/1 on n1 | b: needs 1",
         {"quotas": [{"namespaces": TEAM, "maxTotalGPUs": 3}]},
         "b takes n1"),
        ("a replica that is lent to another namespace is still its own",
         "pool: 4 gpus | chat: 2 replicas, anywhere | a: needs 1, takes chat/1 on n1, in lab | b: needs 1, queue",
         {"quotas": [{"namespaces": TEAM, "maxTotalGPUs": 2}]},
         "b waits NamespaceQuota"),
        ("a job that waits for maxTotalGPUs holds back its own namespace only",
         "pool: 4 gpus | chat: 2 replicas, never | a: needs 2, queue | b: needs 1, queue | c: needs 1, queue, in lab",
         {"quotas": [{"namespaces": TEAM, "maxTotalGPUs": 3}]},
         "a waits NamespaceQuota; b waits NamespaceQuota; c takes n1"),
        ("a pool that is not for a namespace gives it nothing",
         "pool: 4 gpus | a: needs 1 | b: needs 1, in lab",
         {"allowedNamespaces": LAB},
         "b takes n1"),
        ("a priority above the cap gets nothing until it is lowered",
         "pool: 4 gpus | a: needs 1, priority 5 | b: needs 1, priority 4",
         {"quotas": [{"maxPriority": 4}]},
         "b takes n1"),
    ],
)  # fmt: skip
def test_quotas_and_allowed_namespaces_bound_a_namespace(
    rule: str, world: str, pool: dict[str, Any], expected: str
) -> None:
    builder = parse(world)
    builder.namespace("lab", tier="research")
    builder.pool(**pool)
    assert describe(allocated(builder)) == expected, rule


@pytest.mark.parametrize(
    ("rule", "pool", "job", "reason", "says"),
    [
        ("another pool's namespace", {"allowedNamespaces": LAB}, {}, Reason.NAMESPACE_NOT_ALLOWED, "not for namespace"),
        ("a priority above the cap", {"quotas": [{"maxPriority": 4}]}, {"scheduling": {"priority": 5}},
         Reason.PRIORITY_TOO_HIGH, "spec.scheduling.priority: 5 is above 4"),
        ("more than the quota ever allows", {"quotas": [{"maxGPUs": 1}]}, {"resources": {"gpus": 2}},
         Reason.NAMESPACE_QUOTA, "spec.resources.gpus: 2 are asked for"),
        ("or than jobs and replicas may have", {"quotas": [{"maxTotalGPUs": 1}]}, {"resources": {"gpus": 2}},
         Reason.NAMESPACE_QUOTA, "raise maxTotalGPUs"),
    ],
)  # fmt: skip
def test_job_beyond_quotas_or_allowed_namespaces_is_refused(
    rule: str, pool: dict[str, Any], job: dict[str, Any], reason: Reason, says: str
) -> None:
    builder = WorldBuilder()
    builder.node(4)
    builder.pool(**pool)
    made = builder.job("a", outcomes=(), **job)
    decision = plan_job(builder.world, made, NOW, Limits())
    assert decision.start is None, rule
    assert decision.reason is reason, rule
    assert says in decision.message


def engine(builder: WorldBuilder, **terms: Any) -> InferenceEngine:
    """Two replicas that lend on these terms."""
    made = builder.engine("chat", 2, preemption={"policy": "ScaleDown", "minReplicas": 1, **terms})
    for index in (0, 1):
        builder.slot(made, index, "n1")
    return made


def test_lend_to_namespaces_selects_the_borrowers() -> None:
    builder = WorldBuilder()
    builder.node(2)
    engine(builder, lendTo="Selected", lendToNamespaces=LAB)
    builder.job("a")
    builder.job("b", namespace="lab")
    assert describe(allocated(builder)) == "a waits EngineLendsElsewhere; b waits EngineLendsElsewhere"
    builder.namespace("lab", tier="research")
    assert describe(allocated(builder)) == "a waits EngineLendsElsewhere; b takes chat/1"


NIGHT = {"start": "22:00", "end": "06:00"}
EVENING = NOW.replace(hour=21)
AT_NIGHT = NOW.replace(hour=22)


def test_borrow_windows_open_and_the_pool_looks_again() -> None:
    builder = WorldBuilder()
    builder.node(2)
    engine(builder, borrowWindows=[NIGHT])
    job = builder.job("a")
    waits = allocated(builder, EVENING)
    assert describe(waits) == "a waits EngineLendsLater"
    assert "chat lends from Sunday 22:00 UTC on" in waits.waits[job_key("team", job.metadata.name)].message
    pool = find_pool(builder.world, "default")
    assert pool is not None
    assert waits.again_at == AT_NIGHT
    assert describe(allocated(builder, AT_NIGHT)) == "a takes chat/1"


def test_time_zone_unknown_is_named_on_engine_and_job() -> None:
    builder = WorldBuilder()
    builder.node(2)
    made = engine(builder, borrowWindows=[{**NIGHT, "timeZone": "Europe/Berln"}])
    builder.job("a")
    assert describe(allocated(builder, AT_NIGHT)) == "a waits TimeZoneUnknown"
    lent = next(c for c in planned_status(builder.world, made, NOW).conditions if c.type == "Lent")
    assert lent.reason == Reason.TIME_ZONE_UNKNOWN
    assert "borrowWindows[0].timeZone: there is no time zone Europe/Berln" in lent.message


def test_time_zone_unknown_is_named_during_a_loan() -> None:
    builder = WorldBuilder()
    builder.node(2)
    made = engine(builder, borrowWindows=[NIGHT, {**NIGHT, "timeZone": "Europe/Berln"}])
    job = builder.job("a")
    (claim,) = allocated(builder, AT_NIGHT).claims.values()
    builder.trainer_pod(builder.stage_job(job, claim=claim), "n1")
    lent = next(c for c in planned_status(builder.world, made, NOW).conditions if c.type == "Lent")
    assert (lent.status, lent.reason) == ("True", Reason.LENDING)
    assert lent.message.startswith(
        "1 of 2 lent to team/a. spec.preemption.borrowWindows[1].timeZone: there is no time zone Europe/Berln."
    )


def test_loan_goes_on_when_borrow_windows_close() -> None:
    builder = WorldBuilder()
    builder.node(2)
    engine(builder, borrowWindows=[NIGHT])
    job = builder.job("a")
    (claim,) = allocated(builder, AT_NIGHT).claims.values()
    builder.trainer_pod(builder.stage_job(job, claim=claim), "n1")
    morning = NOW.replace(hour=7)
    held = builder.world.engines[engine_key("team", "chat")]
    assert planned_status(builder.world, held, morning).slots[1].lent_to == "team/a"


def decided(builder: WorldBuilder, job: FineTuneJob, after: float) -> JobDecision:
    return plan_job(builder.world, job, NOW + timedelta(seconds=after), Limits())


def test_not_before_delays_the_claim() -> None:
    builder = WorldBuilder()
    builder.node(2)
    begins = NOW + timedelta(seconds=60)
    job = builder.job("a", scheduling={"notBefore": begins.isoformat()})
    assert describe(allocated(builder)) == ""
    decision = decided(builder, job, 0)
    assert (decision.reason, decision.again_at) == (Reason.NOT_BEFORE, begins)
    assert describe(allocated(builder, begins)) == "a takes n1"


@pytest.mark.parametrize(
    ("rule", "scheduling", "fails_after"),
    [
        ("counted from the end of Prepare", {}, 360),  # PREPARED ended four minutes ago
        ("or from notBefore, if that is later", {"notBefore": NOW.isoformat()}, 600),
    ],
)
def test_queue_deadline_seconds_fail_a_waiting_job(rule: str, scheduling: dict[str, Any], fails_after: float) -> None:
    builder = WorldBuilder()
    job = builder.job("a", scheduling={"queueDeadlineSeconds": 600, **scheduling})
    builder.node(2)
    waits = decided(builder, job, fails_after - 1)
    assert not waits.failed, rule
    assert waits.again_at == NOW + timedelta(seconds=fails_after)
    fails = decided(builder, job, fails_after)
    assert (fails.failed, fails.reason) == (True, Reason.QUEUE_DEADLINE_EXCEEDED), rule


@pytest.mark.parametrize("reason", [Reason.QUOTA_EXCEEDED, Reason.NOT_BOUND, Reason.UNSCHEDULABLE])
def test_queue_deadline_seconds_go_on_over_a_claim_given_up(reason: Reason) -> None:
    builder = WorldBuilder()
    given_up = trained(1, 290, 358).model_copy(update={"reason": reason})
    job = builder.job("a", outcomes=(PREPARED, given_up), scheduling={"queueDeadlineSeconds": 600})
    builder.node(2)
    pauses = decided(builder, job, 359)
    assert (pauses.failed, pauses.again_at) == (False, NOW + timedelta(seconds=360))
    fails = decided(builder, job, 360)
    assert (fails.failed, fails.reason) == (True, Reason.QUEUE_DEADLINE_EXCEEDED)
    assert describe(allocated(builder, NOW + timedelta(seconds=3600))) == ""


def test_queue_deadline_seconds_end_with_the_first_training() -> None:
    builder = WorldBuilder()
    job = builder.job("a", outcomes=(PREPARED, trained(1, 0, 40)), scheduling={"queueDeadlineSeconds": 600})
    assert not decided(builder, job, 3600).failed


def trained(attempt: int, begin: float, end: float) -> AttemptOutcome:
    """An attempt that was told to stop."""
    return AttemptOutcome(
        stage=Stage.TRAIN,
        attempt=attempt,
        reason="Requeued",
        started_at=NOW + timedelta(seconds=begin),
        ended_at=NOW + timedelta(seconds=end),
    )


def test_active_deadline_seconds_count_training_only() -> None:
    """40 s in a first attempt, an hour of waiting, then the rest."""
    builder = WorldBuilder()
    builder.node(1)
    job = builder.job("a", outcomes=(PREPARED, trained(1, 0, 40)), activeDeadlineSeconds=100)
    begins = 3600
    assert not decided(builder, job, begins - 1).failed
    stage_job = builder.stage_job(job, attempt=2, claim=builder.claim("n1"), created=NOW + timedelta(seconds=begins))
    builder.trainer_pod(stage_job, "n1")
    assert not decided(builder, job, begins + 59).failed
    late = decided(builder, job, begins + 60)
    assert (late.failed, late.reason) == (True, Reason.DEADLINE_EXCEEDED)
    assert late.delete == (stage_job,)


@pytest.mark.parametrize(
    ("rule", "outcomes", "failed"),
    [
        ("who has trained for as long as allowed waits for nothing", (trained(1, 0, 40), trained(2, 50, 110)), True),
        ("who has time left waits", (trained(1, 0, 40), trained(2, 50, 109)), False),
        ("a recorded attempt that is still going counts once", (trained(1, 0, 60),), False),
        ("who was done in time is done", (trained(1, 0, 101).model_copy(update={"reason": "Done"}),), False),
    ],
)
def test_active_deadline_seconds_count_all_attempts(
    rule: str, outcomes: tuple[AttemptOutcome, ...], failed: bool
) -> None:
    builder = WorldBuilder()
    builder.node(1)
    job = builder.job("a", outcomes=(PREPARED, *outcomes), activeDeadlineSeconds=100)
    if len(outcomes) == 1:
        leaving = builder.stage_job(job, claim=builder.claim("n1"), created=NOW, deleting=True)
        builder.trainer_pod(leaving, "n1")
    assert decided(builder, job, 120).failed is failed, rule


def test_training_message_warns_of_active_deadline_seconds() -> None:
    builder = WorldBuilder()
    builder.node(1)
    job = builder.job("a", activeDeadlineSeconds=3600)
    stage_job = builder.stage_job(job, claim=builder.claim("n1"), created=NOW)
    builder.trainer_pod(stage_job, "n1")
    for seconds_left, warned in ((3000, False), (4000, True)):
        progress = Progress(attempt=1, step=5, seconds_left=seconds_left, reported_at=NOW)
        reported = job.model_copy(update={"status": job.status.model_copy(update={"progress": progress})})
        builder.version += 1
        metadata = reported.metadata.model_copy(update={"resource_version": str(builder.version)})
        reported = reported.model_copy(update={"metadata": metadata})
        builder.put(reported)
        decision = decided(builder, reported, 1)
        assert decision.reason is Reason.TRAINING
        assert ("it is stopped, 2026-11-22 13:00 UTC" in decision.message) is warned, decision.message


def test_job_past_active_deadline_seconds_stays_failed() -> None:
    cluster = Cluster()
    cluster.builder.node(1)
    cluster.builder.job("a", activeDeadlineSeconds=30)
    for _ in range(30):
        cluster.round(seconds=5)
    (job,) = cluster.world.jobs.values()
    assert job.status.summary == Reason.DEADLINE_EXCEEDED
    assert [attempt.reason for attempt in job.status.attempts] == [Reason.DEADLINE_EXCEEDED]
    assert job.status.finished_at is not None
    assert job.status.finished_at < cluster.now - timedelta(seconds=60)
    assert not cluster.world.claiming


def test_returned_slot_is_lent_to_the_next_job_without_a_restart() -> None:
    """If the next claim is made within seconds; else the engine has it."""
    builder = WorldBuilder()
    builder.node(2)
    made = builder.engine("chat", 2, preemption={"policy": "ScaleDown", "minReplicas": 1})
    builder.slot(made, 0, "n1")
    builder.slot(made, 1, size=0)
    done = trained(1, -100, 0).model_copy(update={"reason": "Done"})
    last = builder.job("last", outcomes=(PREPARED, done))
    claim = builder.claim("n1", SlotRef(namespace="team", engine="chat", index=1))
    builder.stage_job(last, claim=claim, finished="Complete", finished_at=NOW)
    assert [plan.index for plan in plan_engine(builder.world, made, NOW).apply] == [1], "nobody waits: it starts"

    builder.job("next")
    assert describe(allocated(builder)) == "next takes chat/1"
    decision = plan_engine(builder.world, made, NOW)
    assert decision.apply == ()
    assert planned_status(builder.world, made, NOW).lent_to == ("team/next",)
    assert decision.placeholders.make == ((1, "n1"),), "nor is it anybody else's"
    assert decision.again_at is not None
    assert [plan.index for plan in plan_engine(builder.world, made, decision.again_at).apply] == [1]
