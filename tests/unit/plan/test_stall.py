"""For how long a training may be silent, and which silences are none."""

from datetime import timedelta
from typing import Any

import pytest

from dev.simulate.builder import NOW
from sluice_api.finetunejob import Progress
from sluice_api.reasons import Reason
from sluice_api.stages import Stage
from sluice_operator.clock import Clock
from sluice_operator.observe.views import Termination
from sluice_operator.observe.world import Heartbeat
from sluice_operator.plan.job.decide import plan_job
from sluice_operator.settings import Limits
from tests.unit.plan.test_claim_cycle import Loan, training
from tests.unit.plan.worlds import WorldBuilder


def says(loan: Loan, progress: Progress) -> None:
    """The job's status.progress."""
    loan.builder.version += 1
    metadata = loan.job.metadata.model_copy(update={"resource_version": str(loan.builder.version)})
    status = loan.job.status.model_copy(update={"progress": progress})
    loan.builder.put(loan.job.model_copy(update={"status": status, "metadata": metadata}))


@pytest.mark.parametrize(
    ("case", "step_seconds", "silent", "reason", "ended"),
    [
        ("it reported a minute ago", 1.0, 60, Reason.TRAINING, False),
        ("no report for two minutes", 1.0, 125, Reason.STALLED, False),
        ("and none in its grace", 1.0, 185, Reason.STALLED, True),
        ("its steps take a minute", 60.0, 185, Reason.TRAINING, False),
        ("it has not made a step: it loads a model", None, 185, Reason.TRAINING, False),
        ("it has not made a step in all the time that a start may take", None, 700, Reason.STALLED, True),
    ],
)
def test_a_trainer_that_stops_reporting_is_stalled_and_then_ended(
    case: str, step_seconds: float | None, silent: float, reason: Reason, ended: bool
) -> None:
    loan = Loan()
    training(loan)
    loan.builder.store.findings.heartbeat(
        loan.stage_job.uid, Heartbeat(1, NOW, step_seconds, "it hangs in loop.py:160")
    )
    decision = loan.plan_job(after=silent)
    assert (decision.reason, bool(decision.delete)) == (reason, ended), case
    assert ("It said: it hangs in loop.py:160" in decision.message) == (reason is Reason.STALLED)
    if ended:
        assert decision.record is not None
        assert decision.record.of(Stage.TRAIN)[-1].reason == Reason.STALLED


@pytest.mark.parametrize(
    ("case", "heard", "led", "reported", "reason"),
    [
        ("another led since it was heard here", -3600, 0, -5, Reason.TRAINING),
        ("another led, and it does not report here", -3600, -125, -130, Reason.STALLED),
        ("it was never heard here, only by another", None, 0, -3600, Reason.TRAINING),
        ("it was never heard here, not in 700 s", None, -700, -3600, Reason.STALLED),
        ("another's clock was ahead", None, -700, 3600, Reason.STALLED),
    ],
)
def test_stalled_ignores_silence_before_this_term(
    case: str, heard: float | None, led: float, reported: float, reason: Reason
) -> None:
    loan = Loan()
    training(loan)
    store = loan.builder.store
    if heard is not None:
        store.findings.heartbeat(loan.stage_job.uid, Heartbeat(1, NOW + timedelta(seconds=heard), 1.0))
    store.findings.since = NOW + timedelta(seconds=led)
    says(loan, Progress(attempt=1, reported_at=NOW + timedelta(seconds=reported)))
    assert loan.plan_job().reason is reason, case


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_stalled_ignores_a_jump_of_the_clock(jump: float) -> None:
    """Nor does a jump hide a silence."""
    passed, set_by = 0.0, 0.0
    clock = Clock(lambda: NOW.timestamp() + passed + set_by, lambda: passed)
    loan = Loan()
    training(loan)

    def reason() -> Reason:
        return plan_job(loan.builder.world, loan.job, clock.now(), Limits()).reason

    loan.builder.store.findings.heartbeat(loan.stage_job.uid, Heartbeat(1, clock.now(), 1.0))
    set_by = jump
    passed += 60
    assert reason() is Reason.TRAINING
    passed += 90
    assert reason() is Reason.STALLED


@pytest.mark.parametrize(
    ("case", "lasted", "ago", "message"),
    [
        ("it trained for less than a start may take", 60, 0, "its result is being read"),
        ("it trained for longer", 7200, 0, "its result is being read"),
        ("its pod does not end", 7200, 601, "has not: another container in it, such"),
    ],
)
def test_a_trainer_that_has_ended_before_its_pod_is_not_one_that_never_started(
    case: str, lasted: float, ago: float, message: str
) -> None:
    """The kubelet reports a container's end at once, and the pod's phase later."""
    loan = Loan()
    ended_at = NOW + timedelta(seconds=lasted)
    loan.put(training(loan), running=False, termination=Termination(0, "Completed", "", ended_at))
    decision = loan.plan_job(after=lasted + ago)
    assert (decision.reason, decision.delete) == (Reason.TRAINING, ()), case
    assert message in decision.message


@pytest.mark.parametrize(
    ("case", "state", "reason"),
    [
        ("it runs", {"running": True}, Reason.PREPARING),
        ("it has ended, and its pod has not", {"termination": Termination(0, "Completed", "", NOW)}, Reason.PREPARING),
        ("it has never started", {}, Reason.POD_NOT_STARTED),
    ],
)
def test_a_stage_is_given_up_only_if_its_pod_has_not_started(case: str, state: dict[str, Any], reason: Reason) -> None:
    builder = WorldBuilder()
    builder.node(1)
    job = builder.job("a", outcomes=())
    stage_job = builder.stage_job(job, stage=Stage.PREPARE, created=NOW - timedelta(seconds=7200))
    builder.trainer_pod(stage_job, "n1", **{"running": False, **state})
    decision = plan_job(builder.world, job, NOW, Limits(), None)
    assert (decision.reason, bool(decision.delete)) == (reason, reason is Reason.POD_NOT_STARTED), case
