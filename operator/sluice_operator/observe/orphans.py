"""What a job has left behind: its stages' Jobs without the job, and their pods without the Job.

`kubectl delete --cascade=orphan` does that, and whoever takes the owner out of an object. Such training would go on
without a deadline, a quota or a place in any queue. So would a pod that was deleted with a grace period of its user's
choice: no later deletion shortens that unless it says so.
"""

from sluice_api.finetunejob import FineTuneJob
from sluice_api.meta import ATTEMPT_LABEL, JOB_LABEL, STAGE_LABEL, stage_job_name
from sluice_operator.observe.views import PodView, StageJobView, View

_UID = "x" * 8
_LONGEST_KEPT = 50
"""Characters of a Job's name that its pods' names always begin with: the rest may give way to their own ending."""


def left_by(view: StageJobView | PodView) -> tuple[tuple[str, str], ...]:
    """Namespace and name of the job that has left it; none if it has its owner, or has never been a job's.

    Whose it was is in its labels, and it has a name that only a job's children have: `<job>-<uid>-<stage>-<attempt>`.
    Of a pod, too, by its own name, which nobody can change: the labels that the Job controller sets are anybody's.
    """
    job, made_by = view.labels.get(JOB_LABEL, ""), _stage_job_of(view)
    if not job or not made_by or (_has_owner(view, job, made_by) and not _is_late(view)):
        return ()
    return ((view.key.namespace, job),)


def runs(view: StageJobView | PodView) -> bool:
    """Whether it still has or may take something, and nobody ends it yet, or not in time."""
    if isinstance(view, PodView):
        return not view.ended and (not view.deleting or _is_late(view))
    return not view.deleting and not view.finished


def _is_late(view: StageJobView | PodView) -> bool:
    """Whether it has been given longer to end than Sluice gives it."""
    return isinstance(view, PodView) and view.in_time is not None


def _has_owner(view: StageJobView | PodView, job: str, made_by: str) -> bool:
    """By its own word. One that names an owner that is gone is the garbage collector's."""
    if view.owner is None:
        return False
    expected = ("Job", made_by) if isinstance(view, PodView) else (FineTuneJob.KIND.kind, job)
    return (view.owner.kind, view.owner.name) == expected


def _stage_job_of(view: View) -> str:
    """Name of the stage's Job that it is, or is a pod of, by name and labels; empty if they do not fit."""
    job, stage, attempt = (view.labels.get(label, "") for label in (JOB_LABEL, STAGE_LABEL, ATTEMPT_LABEL))
    if not stage or not attempt.isdecimal():
        return ""
    at = stage_job_name(job, _UID, stage, int(attempt)).rindex(f"-{_UID}-") + 1
    made_by = stage_job_name(job, view.key.name[at : at + len(_UID)], stage, int(attempt))
    if isinstance(view, PodView):
        return made_by if view.key.name.startswith(made_by[:_LONGEST_KEPT]) else ""
    return made_by if view.key.name == made_by else ""
