"""J3: the training pod is deleted in the middle; the next attempt goes on from its checkpoint, to the same result.

Seen to fail when a new attempt did not look for a checkpoint.
"""

from tests.e2e import objects
from tests.e2e.conftest import Undisturbed
from tests.e2e.observer import Observed
from tests.e2e.team import Team


def test_lost_trainer_pod_resumes_to_the_same_adapter(team: Team, observed: Observed, undisturbed: Undisturbed) -> None:
    """A second attempt, in the same place, from the saved step; the bytes of the adapter are the undisturbed ones."""
    digest = undisturbed.of(team)

    before = len(observed.lent(objects.ENGINE, team.name))
    team.apply(objects.job("resumes"))
    seen = team.training("resumes", step=2).step
    (pod,) = team.every("pods", job="resumes", stage="Train")
    team.delete("pod", pod["metadata"]["name"])
    second = team.wait_job("resumes", lambda job: job.progress.get("attempt") == 2, "has a second attempt")
    assert second.status["allocation"]["borrowed"], "the second attempt took the claim over"
    job = team.finished("resumes")

    first, last = job.attempts
    assert (first["reason"], last["reason"]) == ("Requeued", "Done")
    assert first["step"] >= seen
    assert last["resumedFrom"] == first["step"] - first["lostSteps"]
    assert first["lostSteps"] == 0, "a trainer that is told to stop saves the step that it is at"
    assert job.digest == digest
    assert {attempt: len(pods) for attempt, pods in observed.trainers("resumes").items()} == {"1": 1, "2": 1}
    team.whole()
    assert observed.lent(objects.ENGINE, team.name)[before:] == [1, 0], "no engine grew between two attempts"
