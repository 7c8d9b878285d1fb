"""J11: a PodDisruptionBudget and a HorizontalPodAutoscaler have their say in what is lent, and when it comes back."""

from pathlib import Path

from tests.e2e import objects
from tests.e2e.autoscaler import autoscaled
from tests.e2e.kubectl import Object
from tests.e2e.observer import Observed
from tests.e2e.team import Team
from tests.e2e.test_6_what_is_not_lent import undisturbed

LONG_ENOUGH = 10_000
"""Steps: some minutes."""


def test_disruption_budget_keeps_a_replica_from_being_lent(team: Team, observed: Observed) -> None:
    team.apply(budget(2))
    team.apply(objects.job("waits"))
    waiting = team.wait_job("waits", lambda job: job.summary == "EngineProtected", "waits for the budget")
    assert "A PodDisruptionBudget lets none of the replicas of chat go" in waiting.message
    assert undisturbed(observed, team)

    team.apply(budget(1))
    team.wait_job("waits", lambda job: job.is_true("Admitted"), "starts")
    team.delete("ftj", "waits")
    team.whole()
    assert observed.lent(objects.ENGINE, team.name) == [0, 1, 0]


def test_autoscaler_reclaims_a_loan_and_does_not_spiral(team: Team, observed: Observed, tmp_path: Path) -> None:
    """What it writes is what the engine is to have; a loan subtracts nothing from it, nor adds to it."""
    team.patch("ie", objects.ENGINE, preemption=objects.lending(reclaim="OnDemand"))
    with autoscaled(team, tmp_path) as autoscaler:
        autoscaler.looked()
        team.apply(objects.job("borrows", steps=LONG_ENOUGH))
        seen = team.training("borrows", step=2).step
        autoscaler.has_decided()
        assert replicas(team) == 2
        assert team.training("borrows", step=seen).status["allocation"]["borrowed"]

        autoscaler.sees(3)
        autoscaler.wants(3)
        waiting = team.wait_job("borrows", lambda job: job.summary == "EngineInDemand", "waits for the engine")
        assert waiting.status["interruptions"][0]["reason"] == "Reclaimed"
        team.wait("ie", objects.ENGINE, lambda e: e["status"]["readyReplicas"] == 2, "both GPUs are the engine's", 420)

        autoscaler.sees(2)
        autoscaler.wants(2)
        again = team.wait_job("borrows", lambda job: job.progress.get("attempt") == 2 and job.step >= seen, "goes on")
        assert again.step >= seen
        autoscaler.sees(1)
        autoscaler.wants(1)
        team.delete("ftj", "borrows")
        team.wait("ie", objects.ENGINE, lambda e: e["status"]["lent"] == 0, "nothing is lent")
        assert (replicas(team), team.slot_sizes().count(1)) == (1, 1), "made smaller during a loan, it stays so"


def replicas(team: Team) -> int:
    """What the engine's spec asks for."""
    engine = team.get("ie", objects.ENGINE)
    assert engine is not None
    return int(engine["spec"]["replicas"])


def budget(available: int) -> Object:
    """So many replicas are to be available."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "chat"},
        "spec": {"minAvailable": available, "selector": {"matchLabels": {"sluice.dev/engine": objects.ENGINE}}},
    }
