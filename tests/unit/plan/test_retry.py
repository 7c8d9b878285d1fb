"""After an attempt has ended: when the next one begins, what counts, and when a job that is over goes."""

import gc
import weakref
from datetime import timedelta
from typing import Any

import pytest

from sluice_api.claim import OUTCOMES_BYTES, AttemptOutcome, Outcomes
from sluice_api.meta import OUTCOMES_ANNOTATION
from sluice_api.reasons import Reason
from sluice_api.stages import Stage, TrainResult
from sluice_operator.facts.outcomes import compact, recorded
from sluice_operator.facts.retries import failures, next_attempt_at
from sluice_operator.observe.world import job_key
from sluice_operator.plan.deadlines import training_ends
from sluice_operator.plan.job.decide import plan_job
from sluice_operator.plan.job.situation import next_training_attempt
from sluice_operator.plan.obstacle import Wait
from sluice_operator.settings import Limits
from sluice_operator.status.job import job_status
from tests.unit.plan.worlds import NOW, PREPARED, YIELDS, WorldBuilder, allocated, describe


def attempt(number: int, reason: Reason, minutes: int = 1) -> AttemptOutcome:
    began = NOW - timedelta(minutes=minutes)
    return AttemptOutcome(stage=Stage.TRAIN, attempt=number, reason=reason, started_at=began, ended_at=NOW)


@pytest.mark.parametrize(
    ("ended", "seconds"),
    [
        ([Reason.TRAINER_FAILED], 20),
        ([Reason.TRAINER_FAILED] * 2, 40),
        ([Reason.TRAINER_FAILED] * 3, 70),
        ([Reason.TRAINER_FAILED] * 90, 70),
        ([Reason.PREEMPTED, Reason.NODE_LOST, Reason.TRAINER_FAILED], 20),
        ([Reason.UNSCHEDULABLE], 60),
        ([Reason.UNSCHEDULABLE] * 3, 240),
        ([Reason.QUOTA_EXCEEDED], 10),
        ([Reason.QUOTA_EXCEEDED, Reason.REFUSED_BY_ADMISSION, Reason.NAME_TAKEN], 40),
        ([Reason.QUOTA_EXCEEDED] * 90, 3600),
        ([Reason.QUOTA_EXCEEDED] * 5 + [Reason.PREEMPTED, Reason.QUOTA_EXCEEDED], 10),
        ([Reason.NOT_BOUND], 10),
        ([Reason.POD_REFUSED], 10),
        ([Reason.EVICTED], 10),
        ([Reason.GPU_FAILED], 20),
        ([Reason.OUTPUT_NOT_WRITABLE], 60),
        ([Reason.OUTPUT_NOT_WRITABLE] * 3, 240),
        ([Reason.OUTPUT_NOT_WRITABLE] * 9, 1800),
        ([Reason.OUTPUT_NOT_WRITABLE] * 2 + [Reason.PREEMPTED, Reason.OUTPUT_NOT_WRITABLE], 60),
        ([Reason.PREEMPTED], None),
        ([Reason.RECLAIMED], None),
        ([Reason.NODE_LOST], None),
    ],
)
def test_backoff_seconds_delay_the_next_attempt(ended: list[Reason], seconds: int | None) -> None:
    job = WorldBuilder().job("a", retry={"backoffSeconds": 20, "maxBackoffSeconds": 70})
    record = Outcomes(attempts=tuple(attempt(number, reason) for number, reason in enumerate(ended, start=1)))
    expected = NOW + timedelta(seconds=seconds) if seconds is not None else None
    assert next_attempt_at(job, record, Stage.TRAIN) == expected
    pushed = record.model_copy(update={"suspended_at": NOW})
    assert next_attempt_at(job, pushed, Stage.TRAIN) is None
    before = record.model_copy(update={"suspended_at": NOW - timedelta(seconds=1)})
    assert next_attempt_at(job, before, Stage.TRAIN) == expected, "that was an earlier pause"
    assert next_attempt_at(job, compact(record), Stage.TRAIN) == expected, "the record keeps few of those given up"


@pytest.mark.parametrize(
    ("reason", "fails"),
    [
        (Reason.OUT_OF_MEMORY, Reason.OUT_OF_MEMORY),
        (Reason.DATASET_INVALID, Reason.DATASET_INVALID),
        (Reason.TRAINER_FAILED, Reason.ATTEMPTS_EXHAUSTED),
        (Reason.NODE_LOST, None),
        (Reason.PREEMPTED, None),
        (Reason.RECLAIMED, None),
        (Reason.NOT_BOUND, None),
        (Reason.OUTPUT_NOT_WRITABLE, None),
        (Reason.ACCESS_REFUSED, None),
        (Reason.SOURCE_UNUSABLE, Reason.SOURCE_UNUSABLE),
        (Reason.DOWNLOAD_FAILED, Reason.ATTEMPTS_EXHAUSTED),
        (Reason.POD_REFUSED, None),
        (Reason.EVICTED, None),
        (Reason.GPU_FAILED, Reason.ATTEMPTS_EXHAUSTED),
    ],
)
def test_outcome_decides_whether_a_job_of_one_attempt_fails(reason: Reason, fails: Reason | None) -> None:
    builder = WorldBuilder()
    builder.node(1)
    job = builder.job("a", outcomes=(PREPARED, attempt(1, reason)), retry={"attempts": 1})
    decision = plan_job(builder.world, job, NOW, Limits())
    assert (decision.reason if decision.failed else None) == fails


def test_record_keeps_few_claims_that_were_given_up() -> None:
    claims = [attempt(number, Reason.QUOTA_EXCEEDED) for number in range(2, 2000)]
    record = Outcomes(attempts=(PREPARED, attempt(1, Reason.PREEMPTED), *claims))
    kept = compact(record)
    assert [a.attempt for a in kept.of(Stage.TRAIN)] == [1, 1995, 1996, 1997, 1998, 1999]
    builder = WorldBuilder()
    job = builder.job("a", outcomes=kept.attempts)
    assert next_training_attempt(builder.world, job) == 2000


def test_active_deadline_seconds_leave_out_claims_without_a_node() -> None:
    record = Outcomes(attempts=(attempt(1, Reason.UNSCHEDULABLE, minutes=50), attempt(2, Reason.PREEMPTED, minutes=10)))
    job = WorldBuilder().job("a", activeDeadlineSeconds=3600)
    assert training_ends(job, record, NOW) == NOW + timedelta(minutes=50)


@pytest.mark.parametrize(("seconds", "goes"), [(59, False), (60, True)])
def test_ttl_seconds_after_finished_removes_the_job(seconds: int, goes: bool) -> None:
    builder = WorldBuilder()
    builder.node(1)
    job = builder.job("a", outcomes=(PREPARED, attempt(1, Reason.OUT_OF_MEMORY)), ttlSecondsAfterFinished=60)
    now = NOW + timedelta(seconds=seconds)
    assert not plan_job(builder.world, job, now, Limits()).remove, "nobody was told yet that it is over"
    over = job.model_copy(update={"status": job.status.model_copy(update={"finished_at": NOW})})
    decision = plan_job(builder.world, over, now, Limits())
    assert (decision.remove, decision.again_at) == (goes, NOW + timedelta(seconds=60))


@pytest.mark.parametrize(
    ("rule", "pool", "expected"),
    [
        ("priority goes first", {}, "new takes n1; old waits WaitingForGPUs"),
        ("who waits long enough goes before", {"ageingSeconds": 600}, "new waits WaitingForGPUs; old takes n1"),
        ("but no sooner than its period ends", {"ageingSeconds": 7200}, "new takes n1; old waits WaitingForGPUs"),
    ],
)
def test_ageing_seconds_put_an_old_job_first(rule: str, pool: dict[str, Any], expected: str) -> None:
    builder = WorldBuilder()
    builder.node(1)
    builder.pool(**pool)
    long_ago = PREPARED.model_copy(update={"ended_at": NOW - timedelta(hours=1)})
    builder.job("old", outcomes=(long_ago,), scheduling={"policy": "Queue"})
    builder.job("new", scheduling={"policy": "Queue", "priority": 3})
    assert describe(allocated(builder)) == expected, rule


def test_grace_seconds_go_on_over_a_claim_given_up() -> None:
    builder = WorldBuilder()
    builder.node(1)
    low = builder.job("low", scheduling={"interruption": {**YIELDS, "graceSeconds": 180}})
    builder.trainer_pod(builder.stage_job(low, claim=builder.claim("n1")), "n1")
    given_up = attempt(1, Reason.NOT_BOUND).model_copy(update={"ended_at": NOW - timedelta(minutes=1)})
    builder.job("high", outcomes=(PREPARED, given_up), scheduling={"policy": "Queue", "priority": 5})
    assert describe(allocated(builder)) == "high takes n1 from low"


@pytest.mark.parametrize(
    ("reason", "since", "expected"),
    [
        (Reason.QUOTA_EXCEEDED, timedelta(hours=1), "new waits WaitingForGPUs; old takes n1"),
        (Reason.NOT_BOUND, timedelta(hours=1), "new waits WaitingForGPUs; old takes n1"),
        (Reason.PREEMPTED, timedelta(minutes=2), "new takes n1; old waits WaitingForGPUs"),
    ],
)
def test_queue_since_and_ageing_seconds_go_on_over_a_claim_given_up(
    reason: Reason, since: timedelta, expected: str
) -> None:
    builder = WorldBuilder()
    builder.node(1)
    builder.pool(ageingSeconds=600)
    long_ago = PREPARED.model_copy(update={"ended_at": NOW - timedelta(hours=1)})
    ended = attempt(1, reason).model_copy(update={"ended_at": NOW - timedelta(minutes=2)})
    old = builder.job("old", outcomes=(long_ago, ended), scheduling={"policy": "Queue"})
    builder.job("new", scheduling={"policy": "Queue", "priority": 3})
    assert describe(allocated(builder)) == expected
    wait = Wait(Reason.WAITING_FOR_GPUS, "", position="1")
    queue = job_status(builder.world, old, plan_job(builder.world, old, NOW, Limits(), wait), NOW).queue
    assert queue is not None
    assert queue.since == NOW - since


STOPPED = {"step": 50, "checkpoint_step": 40}
"""What was reported before the trainer was told to stop."""


def resumed(number: int, at: int | None, reason: Reason = Reason.DONE) -> AttemptOutcome:
    """An attempt with its own last words."""
    train = TrainResult(step=90, total_steps=100, checkpoint_step=80, resumed_from=at)
    return attempt(number, reason).model_copy(update={"train": train, "step": 90, "checkpoint_step": 80})


@pytest.mark.parametrize(
    ("rule", "attempts", "lost"),
    [
        ("what was saved at the end is not known yet", [(Reason.PREEMPTED, STOPPED)], [None]),
        ("the next attempt says from which step it goes on", [(Reason.PREEMPTED, STOPPED), resumed(2, 50)], [0, 0]),
        ("the next attempt goes on from an earlier step", [(Reason.RECLAIMED, STOPPED), resumed(2, 45)], [5, 0]),
        ("the next attempt begins anew", [(Reason.SUSPENDED, STOPPED), resumed(2, None)], [50, 0]),
        ("a claim that was given up says nothing",
         [(Reason.STALLED, STOPPED), (Reason.NOT_BOUND, {}), resumed(3, 50)], [0, 0, 0]),
        ("the second's words are not about the first",
         [(Reason.PREEMPTED, STOPPED), (Reason.PREEMPTED, STOPPED), resumed(3, 50)], [None, 0, 0]),
        ("the last words of the attempt are believed", [resumed(1, None, Reason.PREEMPTED)], [10]),
        ("an attempt without a step lost none", [(Reason.SUSPENDED, {})], [0]),
        ("an attempt that is lost with its node saves nothing", [(Reason.NODE_LOST, STOPPED)], [10]),
    ],
)  # fmt: skip
def test_lost_steps_are_known_from_the_next_attempt(
    rule: str, attempts: list[AttemptOutcome | tuple[Reason, dict[str, int]]], lost: list[int | None]
) -> None:
    builder = WorldBuilder()
    builder.node(1)
    record = [
        one if isinstance(one, AttemptOutcome) else attempt(number, one[0]).model_copy(update=one[1])
        for number, one in enumerate(attempts, start=1)
    ]
    job = builder.job("a", outcomes=(PREPARED, *record))
    status = job_status(builder.world, job, plan_job(builder.world, job, NOW, Limits()), NOW)
    assert [one.lost_steps for one in status.attempts] == lost, rule
    gave_way = {one.attempt: one.lost_steps for one in status.interruptions}
    assert all(lost[number - 1] == steps for number, steps in gave_way.items())


@pytest.mark.parametrize("trained", [False, True])
def test_attempt_repeated_by_an_old_leader_is_deleted(trained: bool) -> None:
    """Seen in the soak, after 300,000 operations: it held its GPUs for ever once the job had succeeded."""
    builder = WorldBuilder()
    builder.node(2)
    ended = (attempt(1, Reason.SUSPENDED), *([attempt(2, Reason.DONE)] if trained else []))
    job = builder.job("a", outcomes=(PREPARED, *ended))
    if not trained:
        builder.trainer_pod(builder.stage_job(job, attempt=2, claim=builder.claim("n1")), "n1")
    stray = builder.stage_job(job, attempt=1, claim=builder.claim("n1"), created=NOW)
    builder.trainer_pod(stray)
    assert stray in plan_job(builder.world, job, NOW, Limits()).delete


def test_ended_attempt_is_left_to_the_job_controller() -> None:
    builder = WorldBuilder()
    builder.node(1)
    job = builder.job("a", outcomes=(PREPARED, attempt(1, Reason.DONE)))
    made = builder.stage_job(job, attempt=1, claim=builder.claim("n1"))
    assert plan_job(builder.world, job, NOW, Limits()).delete == (), "its pod is gone already"
    builder.trainer_pod(made, "n1", ended=True)
    assert plan_job(builder.world, job, NOW, Limits()).delete == ()


FULL = "output.uri pvc://adapters/out: No space left on device (0 bytes free). Make room in the claim."


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("reason", [Reason.OUTPUT_NOT_WRITABLE, Reason.OUTPUT_UNREACHABLE, Reason.ACCESS_REFUSED])
def test_output_not_writable_fails_prepare_and_all_else_that_can_be_mended_waits(stage: Stage, reason: Reason) -> None:
    builder = WorldBuilder()
    builder.node(1)
    full = attempt(2, reason).model_copy(update={"stage": stage, "message": FULL})
    before = [PREPARED] if stage is not Stage.PREPARE else []
    before += [attempt(1, Reason.DONE)] if stage is Stage.EXPORT else []
    job = builder.job("a", outcomes=(*before, full), retry={"attempts": 1})
    decision = plan_job(builder.world, job, NOW + timedelta(seconds=30), Limits())
    final = stage is Stage.PREPARE and reason is Reason.OUTPUT_NOT_WRITABLE
    assert (decision.reason, decision.failed) == (reason, final)
    if final:
        return
    assert FULL in decision.message
    assert "at 12:01:00 UTC, or at once when spec.suspend has been true for a moment" in decision.message
    assert decision.again_at == NOW + timedelta(seconds=60)
    assert decision.start is None
    assert (stage is Stage.TRAIN) == (describe(allocated(builder, NOW + timedelta(seconds=60))) == "a takes n1")
    later = plan_job(builder.world, job, NOW + timedelta(seconds=60), Limits())
    assert (later.start is not None) == (stage is not Stage.TRAIN)


def test_suspend_ends_the_backoff() -> None:
    builder = WorldBuilder()
    builder.node(1)
    ended = (PREPARED, attempt(1, Reason.OUTPUT_NOT_WRITABLE))
    suspended = plan_job(builder.world, builder.job("a", outcomes=ended, suspend=True), NOW, Limits())
    assert suspended.record is not None
    assert suspended.record.suspended_at == NOW
    job = builder.job("a", outcomes=ended)
    assert describe(allocated(builder)) == ""
    builder.version += 1
    metadata = job.metadata.model_copy(
        update={
            "annotations": {OUTCOMES_ANNOTATION: suspended.record.to_json()},
            "resource_version": str(builder.version),
        }
    )
    builder.put(job.model_copy(update={"metadata": metadata}))
    assert describe(allocated(builder)) == "a takes n1"
    again = plan_job(builder.world, builder.job("b", outcomes=(PREPARED,), suspend=True), NOW, Limits())
    assert again.record is None, "there was no pause"


def test_record_keeps_few_attempts_of_output_not_writable() -> None:
    kept = compact(Outcomes(attempts=tuple(attempt(number, Reason.OUTPUT_NOT_WRITABLE) for number in range(1, 500))))
    assert [one.attempt for one in kept.attempts] == [494, 495, 496, 497, 498, 499]


def test_a_record_of_many_attempts_fits_into_an_annotation() -> None:
    """What counts stays: every failure, and how the newest attempts ended in their own words."""
    failed = [attempt(number, Reason.TRAINER_FAILED) for number in range(1, 101)]
    gave_way = [attempt(number, Reason.PREEMPTED) for number in range(101, 1101)]
    told = [a.model_copy(update={"message": "x" * 2000}) for a in (*gave_way, *failed)]
    record = Outcomes(attempts=(PREPARED, *told), published="sha256:1")
    shorter = compact(record)
    assert len(shorter.to_json()) <= OUTCOMES_BYTES
    assert failures(shorter.of(Stage.TRAIN)) == 100
    assert (shorter.published, shorter.attempts[0]) == ("sha256:1", PREPARED)
    few = Outcomes(attempts=(PREPARED, *told[-30:]))
    assert [len(a.message) for a in compact(few).attempts[1:]] == [2000] * 30
    more = Outcomes(attempts=(PREPARED, *told[-60:]))
    assert [len(a.message) for a in compact(more).attempts[1:]] == [0] * 40 + [2000] * 20


def test_parsed_record_is_freed_with_its_job() -> None:
    """Else a tenant that patches the record again and again takes the operator's memory."""
    builder = WorldBuilder()
    read = [weakref.ref(recorded(builder.job("a", outcomes=(PREPARED, attempt(1, reason))))) for reason in Reason]
    gc.collect()
    assert [known for known in read[:-1] if known()] == []
    assert read[-1]() is recorded(builder.world.jobs[job_key("team", "a")])
