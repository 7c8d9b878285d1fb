"""What has a job left behind? Stage Jobs without their FineTuneJob, and pods without their stage Job.

`kubectl delete --cascade=orphan` leaves them, and so does anyone who removes the owner from an object. Such training
would go on without a deadline, a quota or a place in any queue. So would a pod that its user deleted with a long grace
period: a later deletion shortens that only if it says so.
"""

from sluice_api.finetunejob import FineTuneJob
from sluice_api.meta import ATTEMPT_LABEL, JOB_LABEL, STAGE_LABEL, stage_job_name
from sluice_operator.observe.views import PodView, StageJobView, View

_UID = "x" * 8
_LONGEST_KEPT = 50
"""Only this many first characters of a Job's name are sure to be in its pods' names: the rest may be cut off."""


def left_by(view: StageJobView | PodView) -> tuple[tuple[str, str], ...]:
    """Namespace and name of the job that left it; empty if it has its owner, or never belonged to a job.

    It must carry the job's label and a name that only a job's children have: `<job>-<uid>-<stage>-<attempt>`. A pod's
    own name counts too: anybody can set the labels of the Job controller, but a name can't be changed.
    """
    job, made_by = view.labels.get(JOB_LABEL, ""), _stage_job_of(view)
    if not job or not made_by or (_has_owner(view, job, made_by) and not _is_late(view)):
        return ()
    return ((view.key.namespace, job),)


def runs(view: StageJobView | PodView) -> bool:
    """Whether it still has or may take something, and is not being ended, or not soon enough."""
    if isinstance(view, PodView):
        return not view.ended and (not view.deleting or _is_late(view))
    return not view.deleting and not view.finished


def _is_late(view: StageJobView | PodView) -> bool:
    """Whether a pod was deleted with a longer grace period than Sluice gives it."""
    return isinstance(view, PodView) and view.in_time is not None


def _has_owner(view: StageJobView | PodView, job: str, made_by: str) -> bool:
    """Whether it names the owner that it should have. If that owner is gone, the garbage collector deletes it."""
    if view.owner is None:
        return False
    expected = ("Job", made_by) if isinstance(view, PodView) else (FineTuneJob.KIND.kind, job)
    return (view.owner.kind, view.owner.name) == expected


def _stage_job_of(view: View) -> str:
    """Name of the stage Job that it is, or to which the pod belongs; empty if its name and labels do not fit."""
    job, stage, attempt = (view.labels.get(label, "") for label in (JOB_LABEL, STAGE_LABEL, ATTEMPT_LABEL))
    if not stage or not attempt.isdecimal():
        return ""
    at = stage_job_name(job, _UID, stage, int(attempt)).rindex(f"-{_UID}-") + 1
    made_by = stage_job_name(job, view.key.name[at : at + len(_UID)], stage, int(attempt))
    if isinstance(view, PodView):
        return made_by if view.key.name.startswith(made_by[:_LONGEST_KEPT]) else ""
    return made_by if view.key.name == made_by else ""
