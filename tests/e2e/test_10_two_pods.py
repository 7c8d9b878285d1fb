"""J10: two pods train as one; they have their GPUs at once, end together, and come to the result of one pod."""

from tests.e2e import objects
from tests.e2e.conftest import Undisturbed
from tests.e2e.kubectl import Object
from tests.e2e.observer import Observed
from tests.e2e.team import Team


def test_group_of_two_pods_has_the_adapter_of_one_pod(team: Team, observed: Observed, undisturbed: Undisturbed) -> None:
    """Both replicas are lent; a pod is lost in the middle; the adapter has the bytes that one pod would write."""
    alone = undisturbed.of(team)
    team.patch("ie", objects.ENGINE, preemption=objects.lending(minReplicas=0))
    before = len(observed.lent(objects.ENGINE, team.name))
    team.apply(objects.job("together", resources=objects.resources(nodes=2)))
    seen = team.training("together", step=2)
    assert len(seen.status["allocation"]["borrowed"]) == 2
    (second,) = [pod for pod in _pods(team) if pod["metadata"]["labels"][_INDEX] == "1"]
    team.delete("pod", second["metadata"]["name"])
    job = team.finished("together")

    assert [attempt["reason"] for attempt in job.attempts] == ["Requeued", "Done"]
    assert job.attempts[1]["resumedFrom"] >= seen.step
    assert job.attempts[0]["lostSteps"] == 0, "the pod that stayed saved the step it was at"
    assert job.digest == alone
    team.whole()
    assert observed.lent(objects.ENGINE, team.name)[before:] == [2, 0], "both at once, and none grew between attempts"


_INDEX = "batch.kubernetes.io/job-completion-index"


def _pods(team: Team) -> list[Object]:
    return team.every("pods", job="together", stage="Train")
