"""How did attempts end, in the trainer's own words or else in those of the kubelet and of Kubernetes?"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from itertools import takewhile
from typing import NamedTuple

from pydantic import ValidationError

from sluice_api.claim import OUTCOMES_BYTES, AttemptOutcome, Outcomes
from sluice_api.finetunejob import FineTuneJob
from sluice_api.meta import OUTCOMES_ANNOTATION
from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode, Stage, StageOutcome
from sluice_operator.facts.claims import preemptor_of
from sluice_operator.facts.retries import FIRST_PAUSE, Pause, after, doubled
from sluice_operator.observe.views import Key, PodView, StageJobView, Termination
from sluice_operator.observe.world import World, identity, oldest_first

_BY_EXIT_CODE = "PodFailurePolicy:"
"""A failed Job's message begins so if a pod exited with ExitCode.REQUEUE: its podFailurePolicy has no other rule. The
message does not say which pod of a group."""


BY_DEADLINE = "DeadlineExceeded:"
"""A failed Job's message begins so if its activeDeadlineSeconds were over. Its pods report only that they were told to
stop."""


_OUT_OF_MEMORY = "OOMKilled"


_SIGNALS = {137: "SIGKILL", 143: "SIGTERM"}
"""Exit codes of a process that was ended by a signal."""


class End(NamedTuple):
    """How one pod of an attempt ended."""

    reason: str
    message: str
    node: str
    stage_outcome: StageOutcome | None
    """What the trainer wrote on its way out; None if it wrote nothing that can be read."""


def pod_end(world: World, stage_job: StageJobView, pod: PodView | None, node: str) -> End:
    """How one pod of a finished Job ended.

    Args:
        pod: None if the pod is gone.
        node: the node that the claim gives the pod; empty without a claim. The pod's own node comes before it.
    """
    place = pod.node if pod and pod.node else node
    stage_outcome = _stage_outcome(pod.termination if pod else None)
    if stage_outcome is not None:
        return End(stage_outcome.reason, stage_outcome.message, place, stage_outcome)
    return End(*_why(world, stage_job, pod, place), place, None)


def cause_order(end: End) -> int:
    """Sort key for the ends of one attempt's pods: the least is the cause of the others.

    A pod that fails, or is lost with its node, takes all others along. It stays, and the others are deleted. If no
    operator ran meanwhile, it is not known how those ended, so a lost pod is rarely the cause. A pod that reports
    another one missing was not the first, and comes last.
    """
    if end.reason == Reason.NODE_LOST:
        return 1
    if end.reason in (Reason.REQUEUED, Reason.STALLED):
        return 2
    if end.reason != Reason.POD_LOST:
        return 0
    return 4 if end.stage_outcome else 3


def _stage_outcome(termination: Termination | None) -> StageOutcome | None:
    if termination is None or not termination.message:
        return None
    try:
        return StageOutcome.model_validate_json(termination.message)
    except ValidationError:
        return None


def _why(world: World, stage_job: StageJobView, pod: PodView | None, node: str) -> tuple[Reason, str]:
    """Reason and message for a pod that left no words of its own. Memory is the reason only if the kernel says so."""
    if stage_job.finished == "Complete":
        return Reason.POD_LOST, "The pod ended well, but is gone with its result; the stage runs again."
    termination = pod.termination if pod else None
    if termination and termination.reason == _OUT_OF_MEMORY:
        return Reason.OUT_OF_MEMORY, "The pod used more than resources.memory and was killed."
    if termination and termination.exit_code == ExitCode.REQUEUE:
        return Reason.REQUEUED, "The trainer was told to stop."
    if pod and (taken := _taken_away(world, pod, node)):
        return taken
    if termination is None:
        return _gone(world, stage_job, node)
    if signal := _SIGNALS.get(termination.exit_code):
        late = ": it had not ended by itself when its grace period was over" if pod and pod.deleting else ""
        return Reason.POD_LOST, f"The trainer was killed by {signal}{late}, and not by the kernel for want of memory."
    last_words = termination.message.strip() or termination.reason
    return Reason.TRAINER_FAILED, f"Exit code {termination.exit_code}. {last_words}"


def _gone(world: World, stage_job: StageJobView, node: str) -> tuple[Reason, str]:
    """Reason and message for a pod that is gone, or has ended without an exit code."""
    # In a group it could be any pod that asked for the requeue.
    if stage_job.failure.startswith(_BY_EXIT_CODE) and len(stage_job.claim.nodes if stage_job.claim else ()) <= 1:
        return Reason.REQUEUED, "The trainer was told to stop while no operator looked."
    if node and Key("Node", "", node) not in world.nodes:
        return Reason.NODE_LOST, f"Node {node} is gone."
    return Reason.POD_LOST, stage_job.failure or "The pod is gone without a word."


def _taken_away(world: World, pod: PodView, node: str) -> tuple[Reason, str] | None:
    """Reason and message if Kubernetes took a pod away or did not let it begin; None if it did neither.

    An end that the pod caused itself, by using more disk than its limit for example, is no disruption. It counts as an
    attempt.
    """
    name = pod.key.name
    if pod.disruption and Key("Node", "", node) in world.nodes:
        return Reason.EVICTED, f"Pod {name} was evicted from node {node}: {pod.failure or pod.disruption}"
    if not pod.failure:
        return None
    if pod.started:
        return Reason.POD_LOST, f"The kubelet of node {node} ended pod {name}: {pod.failure}"
    return Reason.POD_REFUSED, f"The kubelet of node {node} refused pod {name}: {pod.failure}"


_GIVEN_UP_KEPT, _MENDABLE_KEPT = 5, 6
"""How many attempts the record keeps, the newest of each kind: those that gave up their claim, and those that ended for
something that a person can mend. A waiting job makes one after the other. The mendable ones kept suffice to double the
pause up to its longest."""


_SHORT_PAUSE = timedelta(seconds=10)


_LONG_PAUSE = timedelta(minutes=1)


_LONGEST_MENDING_PAUSE = timedelta(minutes=30)


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


def attempts_that_ran(attempts: Iterable[AttemptOutcome]) -> tuple[AttemptOutcome, ...]:
    """The attempts that ran. An attempt that gave up its claim first does not count: its job's wait went on."""
    return tuple(attempt for attempt in attempts if after(attempt.reason).ran)


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
            "does not count). Raise it, or train less."
        )
    return (
        f"{stage} has not ended after {job.spec.stage_deadline_seconds} s (spec.stageDeadlineSeconds). Create the job "
        "again with more."
    )


def only_node(stage_job: StageJobView) -> str:
    """The node of an attempt that runs on one node; empty for several nodes or without a claim."""
    nodes = {*stage_job.claim.nodes} if stage_job.claim else set()
    return nodes.pop() if len(nodes) == 1 else ""


def failures(outcomes: tuple[AttemptOutcome, ...]) -> int:
    """How many of a stage's attempts count against retry.attempts."""
    return sum(1 for outcome in outcomes if after(outcome.reason).counts)


def done(outcomes: Outcomes, stage: Stage) -> AttemptOutcome | None:
    """The attempt that completed a stage, with its result; None while the stage is not complete."""
    for outcome in outcomes.of(stage):
        if outcome.reason == Reason.DONE:
            return outcome
    return None


def is_final(outcome: AttemptOutcome) -> bool:
    """Whether an attempt's end is the end of its job, because another attempt would end the same."""
    follows = after(outcome.reason)
    return follows.final or (follows.mendable and outcome.stage is Stage.PREPARE)


def next_attempt_at(job: FineTuneJob, record: Outcomes, stage: Stage) -> datetime | None:
    """When the next attempt of a stage may begin; None if at once. Suspending the job in the pause ends the pause."""
    outcomes = record.of(stage)
    last = outcomes[-1] if outcomes else None
    if last is None or last.ended_at is None or (follows := after(last.reason)).pause is Pause.NONE:
        return None
    if record.suspended_at is not None and record.suspended_at >= last.ended_at:
        return None
    match follows.pause:
        case Pause.SHORT:
            return last.ended_at + _SHORT_PAUSE
        case Pause.DOUBLES_FROM_SECONDS:
            return last.ended_at + doubled(FIRST_PAUSE, _given_up_before(outcomes))
        case Pause.DOUBLES_FROM_A_MINUTE if follows.mendable:
            times = len(list(takewhile(lambda one: after(one.reason).mendable, reversed(outcomes)))) - 1
            return last.ended_at + doubled(_LONG_PAUSE, times, _LONGEST_MENDING_PAUSE)
        case Pause.DOUBLES_FROM_A_MINUTE:
            return last.ended_at + doubled(_LONG_PAUSE, _given_up_before(outcomes))
        case _:
            doublings = min(max(0, failures(outcomes) - 1), 20)
            seconds = min(job.spec.retry.backoff_seconds * 2**doublings, job.spec.retry.max_backoff_seconds)
            return last.ended_at + timedelta(seconds=seconds)


def _given_up_before(outcomes: tuple[AttemptOutcome, ...]) -> int:
    """How many claims in a row were given up before the last one.

    Attempt numbers are compared, not attempts counted: the record keeps only the newest of those that gave up.
    """
    theirs = max((attempt.attempt for attempt in attempts_that_ran(outcomes)), default=0)
    return outcomes[-1].attempt - theirs - 1


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
