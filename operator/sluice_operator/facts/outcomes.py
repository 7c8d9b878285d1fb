"""How did each attempt of a job end? The job's annotation records the attempts, the newest in full."""

from datetime import datetime

from pydantic import ValidationError

from sluice_api.claim import OUTCOMES_BYTES, AttemptOutcome, Outcomes
from sluice_api.finetunejob import FineTuneJob
from sluice_api.meta import OUTCOMES_ANNOTATION
from sluice_api.reasons import Reason
from sluice_api.stages import Stage
from sluice_operator.facts.claims import preemptor_of
from sluice_operator.facts.pod_ends import End, cause_order, pod_end
from sluice_operator.facts.retries import after, attempts_that_ran
from sluice_operator.observe.views import StageJobView
from sluice_operator.observe.world import World, identity, oldest_first

BY_DEADLINE = "DeadlineExceeded:"
"""A failed Job's message begins so if its activeDeadlineSeconds were over. Its pods report only that they were told to
stop."""


_GIVEN_UP_KEPT, _MENDABLE_KEPT = 5, 6
"""How many attempts the record keeps, the newest of each kind: those that gave up their claim, and those that ended for
something that a person can mend. A waiting job makes one after the other. The mendable ones kept suffice to double the
pause up to its longest."""


_KEPT = "_outcomes"


def recorded(job: FineTuneJob) -> Outcomes:
    """The attempts that the job's annotation records; none if the annotation is absent, too long or unreadable.

    Every decision asks this for every job of a pool. So the answer is kept in the job object itself.
    """
    text = job.metadata.annotations.get(OUTCOMES_ANNOTATION, "{}")
    known: tuple[str, Outcomes] | None = vars(job.metadata).get(_KEPT)
    if known is None or known[0] is not text:  # a copied job also has the answer for the original's text
        known = vars(job.metadata)[_KEPT] = text, _parsed(text)
    return known[1]


def _parsed(text: str) -> Outcomes:
    if len(text) > OUTCOMES_BYTES:
        return Outcomes()
    try:
        return Outcomes.model_validate_json(text)
    except ValidationError:
        return Outcomes()


def waits_since(job: FineTuneJob) -> datetime | None:
    """Since when a prepared job without GPUs could have had some.

    Returns:
        The end of its last attempt that ran, or `notBefore` if that is later. None if it has neither.
    """
    ended = [outcome.ended_at for outcome in attempts_that_ran(recorded(job).attempts) if outcome.ended_at]
    begins = job.spec.scheduling.not_before
    since = max([*ended, *([begins] if begins else [])], default=None)
    made = job.metadata.creation_timestamp
    return max(since, made) if since and made else since


def all_outcomes(world: World, job: FineTuneJob) -> Outcomes:
    """Every ended attempt of a job: the recorded ones, and those of finished Jobs that are not recorded yet."""
    outcomes = recorded(job)
    for stage_job in oldest_first(world.stage_jobs_of.get(identity(job), {}).values()):
        if not stage_job.finished or outcomes.has(stage_job.stage, stage_job.attempt):
            continue
        outcome = ended(world, job, stage_job)
        if outcome is not None:
            outcomes = outcomes.with_attempt(outcome)
    return outcomes


def ended(world: World, job: FineTuneJob, stage_job: StageJobView) -> AttemptOutcome | None:
    """How a Job's attempt ended; None while the Job runs, or while a pod's last words are on their way."""
    if not stage_job.finished:
        return None
    pods = {pod.index: pod for pod in oldest_first(world.pods_of.get(identity(stage_job), {}).values())}
    if any(pod.termination is None and not pod.ended for pod in pods.values()):
        return None
    places = stage_job.claim.nodes if stage_job.claim else ("",)
    ends = [pod_end(world, stage_job, pods.get(index), node) for index, node in enumerate(places)]
    leader = ends[0]
    # If pod 0 is done, the attempt has its result, however the other pods ended.
    cause = leader if leader.reason == Reason.DONE else min(ends, key=cause_order)
    if stage_job.failure.startswith(BY_DEADLINE) and leader.reason != Reason.DONE:
        cause = cause._replace(reason=Reason.DEADLINE_EXCEEDED, message=deadline_of(job, stage_job.stage))
    reason, by, stage_outcome = cause.reason, "", leader.stage_outcome
    preemptor = preemptor_of(world, stage_job) if after(reason).keeps_claim else None
    if preemptor and preemptor.owner:  # the next attempt can't keep the claim: another job has the GPUs
        reason, by = Reason.PREEMPTED, f"{preemptor.key.namespace}/{preemptor.owner.name}"
    progress = job.status.progress
    reported = (
        progress if progress and stage_job.stage is Stage.TRAIN and progress.attempt == stage_job.attempt else None
    )
    train = stage_outcome.train if stage_outcome else None
    return AttemptOutcome(
        stage=stage_job.stage,
        attempt=stage_job.attempt,
        reason=reason,
        message=f"{cause.message}{_again_there(job, cause)}"[:2000],
        started_at=stage_job.created,
        ended_at=stage_job.finished_at,
        node=cause.node,
        by=by,
        step=max(train.step if train else 0, reported.step if reported else 0),
        checkpoint_step=train.checkpoint_step if train else reported.checkpoint_step if reported else None,
        prepare=stage_outcome.prepare if stage_outcome else None,
        train=train,
        export=stage_outcome.export if stage_outcome else None,
    )


def _again_there(job: FineTuneJob, cause: End) -> str:
    """What to add to a message if GPUs of the same node have failed for this job before; empty if they have not."""
    failed = [one for one in recorded(job).attempts if (one.reason, one.node) == (Reason.GPU_FAILED, cause.node)]
    if cause.reason != Reason.GPU_FAILED or not failed:
        return ""
    return (
        f" {len(failed) + 1} attempts have ended so on node {cause.node}: look at its GPUs, and cordon it until they "
        f"are mended (kubectl cordon {cause.node})."
    )


def deadline_of(job: FineTuneJob, stage: Stage) -> str:
    """The message for a stage that has exceeded its deadline."""
    if stage is Stage.TRAIN:
        return (
            f"Training has not ended after {job.spec.active_deadline_seconds} s (spec.activeDeadlineSeconds; waiting "
            "does not count). Create the job again with more, or have it train less."
        )
    return (
        f"{stage} has not ended after {job.spec.stage_deadline_seconds} s (spec.stageDeadlineSeconds). Create the job "
        "again with more."
    )


def only_node(stage_job: StageJobView) -> str:
    """The node of an attempt that runs on one node; empty for several nodes or without a claim."""
    nodes = {*stage_job.claim.nodes} if stage_job.claim else set()
    return nodes.pop() if len(nodes) == 1 else ""


def done(outcomes: Outcomes, stage: Stage) -> AttemptOutcome | None:
    """The attempt that completed a stage, with its result; None while the stage is not complete."""
    for outcome in outcomes.of(stage):
        if outcome.reason == Reason.DONE:
            return outcome
    return None


def compact(outcomes: Outcomes) -> Outcomes:
    """The same record, short enough for an annotation.

    A job that waits behind a quota gives up a claim every minute: all but the newest of these attempts are dropped. If
    the rest is still too long, the oldest attempts lose their messages. After that, attempts that neither failed nor
    are done are dropped, the oldest first.
    """
    dropped = set[int]()
    given_up = [place for place, attempt in enumerate(outcomes.attempts) if not after(attempt.reason).ran]
    mendable = [place for place, attempt in enumerate(outcomes.attempts) if after(attempt.reason).mendable]
    dropped.update(given_up[:-_GIVEN_UP_KEPT], mendable[:-_MENDABLE_KEPT])
    attempts = tuple(attempt for place, attempt in enumerate(outcomes.attempts) if place not in dropped)
    shortened = outcomes.model_copy(update={"attempts": attempts}) if dropped else outcomes
    if len(shortened.to_json()) <= OUTCOMES_BYTES:
        return shortened
    for worded in (20, 5, 0):
        silent = (attempt.model_copy(update={"message": ""}) for attempt in attempts[: max(0, len(attempts) - worded)])
        shortened = outcomes.model_copy(update={"attempts": (*silent, *attempts[max(0, len(attempts) - worded) :])})
        if len(shortened.to_json()) <= OUTCOMES_BYTES:
            return shortened
    while free := [attempt for attempt in shortened.attempts if _counts_for_nothing(attempt)]:
        gone = {(attempt.stage, attempt.attempt) for attempt in free[: (len(free) + 1) // 2]}
        left = tuple(attempt for attempt in shortened.attempts if (attempt.stage, attempt.attempt) not in gone)
        shortened = shortened.model_copy(update={"attempts": left})
        if len(shortened.to_json()) <= OUTCOMES_BYTES:
            break
    return shortened


def _counts_for_nothing(attempt: AttemptOutcome) -> bool:
    return not after(attempt.reason).counts and attempt.reason != Reason.DONE
