"""What a job has left behind: its stages' Jobs without the job, and their pods without the Job.

`kubectl delete --cascade=orphan` does that, and whoever takes the owner out of an object. Such training would go on
without a deadline, a quota or a place in any queue.
"""

from sluice_api.finetunejob import FineTuneJob
from sluice_api.meta import ATTEMPT_LABEL, JOB_LABEL, JOB_NAME_LABEL, STAGE_LABEL, stage_job_name
from sluice_operator.observe.views import PodView, StageJobView, View


def left_by(view: StageJobView | PodView) -> tuple[tuple[str, str], ...]:
    """Namespace and name of the job that has left it; none if it has its owner, or has never been a job's.

    Whose it was is in its labels, and it has a name that only a job's children have: `<job>-<uid>-<stage>-<attempt>`.
    """
    job = view.labels.get(JOB_LABEL, "")
    if not job or _has_owner(view, job) or not _is_named_so(view, job):
        return ()
    return ((view.key.namespace, job),)


def runs(view: StageJobView | PodView) -> bool:
    """Whether it still has or may take something, and nobody ends it yet."""
    return not view.deleting and not (view.ended if isinstance(view, PodView) else view.finished)


def _has_owner(view: StageJobView | PodView, job: str) -> bool:
    """By its own word. One that names an owner that is gone is the garbage collector's."""
    if view.owner is None:
        return False
    if isinstance(view, PodView):
        return view.owner.kind == "Job"
    return (view.owner.kind, view.owner.name) == (FineTuneJob.KIND.kind, job)


def _is_named_so(view: View, job: str) -> bool:
    stage, attempt = view.labels.get(STAGE_LABEL, ""), view.labels.get(ATTEMPT_LABEL, "")
    name = view.labels.get(JOB_NAME_LABEL, "") if isinstance(view, PodView) else view.key.name
    uid = name.removesuffix(f"-{stage.lower()}-{attempt}")[-8:]
    return attempt.isdecimal() and bool(stage) and name == stage_job_name(job, uid, stage, int(attempt))
