"""J5: a job is suspended, goes on, and is deleted, each time in the middle of its training.

Seen to fail when a Job was deleted without its pods (propagationPolicy: Orphan).
"""

from tests.e2e import objects
from tests.e2e.kubectl import Object
from tests.e2e.observer import Observed
from tests.e2e.team import JobState, Team

TOO_MANY = 100_000
"""Steps of a job that does not end by itself."""


def test_suspended_job_resumes_and_is_deleted(team: Team, observed: Observed) -> None:
    """Each time the GPU is given back, the engine is whole, and nothing is left; the training so far is kept."""
    team.apply(objects.job("stops", steps=TOO_MANY))
    seen = team.training("stops", step=5).step

    team.patch("ftj", "stops", suspend=True)
    team.wait_all("jobs", is_empty, "the training Job is gone", job="stops", stage="Train")
    team.wait_all("pods", is_empty, "the training pod is gone", job="stops", stage="Train")
    suspended = team.wait_job("stops", lambda job: job.summary == "Suspended", "is suspended")
    assert "allocation" not in suspended.status
    assert "spec.suspend" in suspended.message
    team.whole()

    team.patch("ftj", "stops", suspend=False)
    team.wait_job("stops", lambda job: is_training(job, attempt=2), "trains again")
    states = [JobState(job) for moment in observed.moments("ftj") for job in moment]
    again = [job.step for job in states if is_training(job, attempt=2)]
    assert min(again, default=seen) >= seen, "it began anew"

    team.delete("ftj", "stops")
    team.wait_all("jobs", is_empty, "no Job of it is left", job="stops")
    team.wait_all("pods", is_empty, "no pod of it is left", job="stops")
    team.whole()
    assert observed.lent(objects.ENGINE, team.name) == [0, 1, 0, 1, 0]
    assert observed.fewest_ready(objects.ENGINE) == 1


def is_empty(found: list[Object]) -> bool:
    """Whether nothing is left."""
    return not found


def is_training(job: JobState, attempt: int) -> bool:
    """Whether an attempt makes steps, as its trainer says."""
    return job.progress.get("attempt") == attempt and job.progress.get("activity") == "Training" and job.step > 0
