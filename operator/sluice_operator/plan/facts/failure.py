"""When a job has failed for good."""

from datetime import datetime

from sluice_api.claim import AttemptOutcome, Outcomes
from sluice_api.finetunejob import FineTuneJob
from sluice_api.reasons import Reason
from sluice_api.stages import Stage
from sluice_operator.plan.facts.deadlines import time_ends
from sluice_operator.plan.facts.outcomes import failures, is_final


def final_failure(
    job: FineTuneJob, outcomes: Outcomes, now: datetime, training_since: datetime | None = None
) -> tuple[Stage, Reason, str] | None:
    """Why a job has failed for good: an end that no other attempt would change, too many, or too late."""
    for stage in Stage:
        ended = outcomes.of(stage)
        if not ended or any(outcome.reason == Reason.DONE for outcome in ended):
            continue
        last = ended[-1]
        if is_final(last):
            return stage, _reason(last), last.message
        if failures(ended) >= job.spec.retry.attempts:
            return (
                stage,
                Reason.ATTEMPTS_EXHAUSTED,
                (
                    f"{failures(ended)} attempts of {stage} failed, spec.retry.attempts is {job.spec.retry.attempts}. "
                    f"The last one: {last.reason}: {last.message}"
                ),
            )
    end = time_ends(job, outcomes, training_since)
    return (Stage.TRAIN, end.reason, end.message) if end and now >= end.at else None


def _reason(outcome: AttemptOutcome) -> Reason:
    """The outcome's reason if it is one that we know."""
    return Reason.known(outcome.reason) or Reason.TRAINER_FAILED
