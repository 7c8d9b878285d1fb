"""J9: training gives way, to a job of higher priority and to the engine, and goes on to the same result."""

import sys
import time

from sluice_api.stages import GRACE_SECONDS
from tests.e2e import objects
from tests.e2e.conftest import Undisturbed
from tests.e2e.observer import Observed
from tests.e2e.team import Team

NEVER = "2100-01-01T00:00:00Z"
YIELDS = {"policy": "ToHigherPriority", "minRunSeconds": 0}


def test_training_is_preempted_by_a_job_of_higher_priority(
    team: Team, observed: Observed, undisturbed: Undisturbed
) -> None:
    """It saves its state, the other job has the replica that it borrowed, and then it goes on."""
    digest = undisturbed.of(team)
    urgent = {"policy": "Preempt", "priority": 5}
    team.apply(objects.job("urgent", steps=20, scheduling={**urgent, "notBefore": NEVER}))
    team.wait_job("urgent", lambda job: job.is_true("Prepared"), "has its data ready")
    before = len(observed.lent(objects.ENGINE, team.name))
    team.apply(objects.job("gives-way", scheduling={"policy": "Preempt", "interruption": YIELDS}))
    seen = team.training("gives-way", step=2).step
    team.patch("ftj", "urgent", scheduling={"notBefore": None})

    waiting = team.wait_job("gives-way", lambda job: job.status.get("interruptions"), "was interrupted")
    (interruption,) = waiting.status["interruptions"]
    assert (interruption["reason"], interruption["by"]) == ("Preempted", f"{team.name}/urgent")
    team.wait_job("urgent", lambda job: job.is_true("Trained"), "has trained")
    job = team.finished("gives-way")

    first, last = job.attempts
    assert (first["reason"], last["reason"]) == ("Preempted", "Done")
    assert first["step"] >= seen
    assert last["resumedFrom"] >= seen
    assert job.status["interruptions"][0]["lostSteps"] == 0, "a trainer that is told to stop saves the step it is at"
    assert job.digest == digest
    team.whole()
    assert observed.lent(objects.ENGINE, team.name)[before:] == [1, 0], "no engine grew between the loans"


def test_training_gives_way_to_a_reclaim_of_its_loan(team: Team, observed: Observed, undisturbed: Undisturbed) -> None:
    """The engine is raised above what it has GPUs for, and is whole as soon as the state is saved."""
    digest = undisturbed.of(team)
    team.patch("ie", objects.ENGINE, preemption=objects.lending(reclaim="OnDemand"))
    team.apply(objects.job("gives-back"))
    seen = team.training("gives-back", step=2).step
    asked = time.monotonic()
    team.patch("ie", objects.ENGINE, replicas=3)
    both = lambda pods: sum("nodeName" in pod["spec"] for pod in pods) == 2  # noqa: E731
    promised = objects.lending()["drainTimeoutSeconds"] + GRACE_SECONDS
    team.wait_all("pods", both, "the replica has its GPU again", promised, engine=objects.ENGINE)
    sys.stdout.write(f"asked back: its pod had the GPU again after {time.monotonic() - asked:.1f} s\n")
    waiting = team.wait_job("gives-back", lambda job: job.summary == "EngineInDemand", "waits for the engine")
    (interruption,) = waiting.status["interruptions"]
    assert (interruption["reason"], interruption["by"]) == ("Reclaimed", f"{team.name}/{objects.ENGINE}")
    team.wait("ie", objects.ENGINE, lambda e: e["status"]["readyReplicas"] == 2, "both GPUs are the engine's")
    assert not team.every("pods", job="gives-back", stage="Train")

    team.patch("ie", objects.ENGINE, replicas=2)
    job = team.finished("gives-back")
    assert [attempt["reason"] for attempt in job.attempts] == ["Reclaimed", "Done"]
    assert job.attempts[1]["resumedFrom"] >= seen
    assert job.digest == digest
    team.whole()
