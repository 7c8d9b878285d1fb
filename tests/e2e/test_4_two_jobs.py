"""J4: two jobs want the one GPU that may be lent.

Seen to fail when a waiting job was not told who holds the GPUs.
"""

from tests.e2e import objects
from tests.e2e.observer import Observed, holds_a_node
from tests.e2e.team import Team


def test_second_job_waits_for_the_first(team: Team, observed: Observed) -> None:
    """It says so, naming the first, and starts by itself."""
    team.apply(objects.job("first"))
    team.wait_job("first", lambda job: job.condition("Admitted").get("reason") not in {None, "Pending"}, "is in front")
    team.apply(objects.job("second", steps=20))

    waiting = team.wait_job("second", lambda job: "first" in job.message, "waits for the first")
    assert waiting.condition("Admitted")["status"] == "False"
    assert waiting.summary in {"WaitingForGPUs", "EngineAtFloor", "BehindInQueue"}
    assert not team.every("jobs", job="second", stage="Train")

    team.wait_job("second", lambda job: job.is_true("Trained"), "has trained")
    first = team.wait_job("first", lambda job: job.is_true("Trained"), "has trained")
    assert [attempt["reason"] for attempt in first.attempts] == ["Done"]
    together = max(sum(map(holds_a_node, pods)) for pods in observed.moments("pods", stage="Train"))
    assert together == 1
