"""J2: the operator is killed at five moments of one loan, and nobody notices but its logs.

Each moment is held from outside, so that the kill hits it and not a moment near it: the Job controller stands still,
admission refuses the write that would end it, or a request in flight does not end.

Seen to fail, at the second moment, when a new leader knew only the claims of its own term.
"""

import pytest

from tests.e2e import objects
from tests.e2e.admission_hold import SLOTS_KEEP_THEIR_SIZE, HalfRequest, holds
from tests.e2e.conftest import Undisturbed
from tests.e2e.control_plane import stands_still
from tests.e2e.kubectl import Kubectl, Object
from tests.e2e.observer import Observed
from tests.e2e.sluice import Sluice
from tests.e2e.team import Team, is_draining


@pytest.mark.alone
def test_operator_killed_at_five_moments_of_a_loan(
    team: Team, observed: Observed, kubectl: Kubectl, sluice: Sluice, undisturbed: Undisturbed
) -> None:
    """The same end as if nothing had happened: one attempt, one trainer, an engine that is whole."""
    team.patch("ie", objects.ENGINE, preemption=objects.lending(minReplicas=2))
    team.apply(objects.job("survives"))
    team.wait_job("survives", lambda job: job.is_true("Prepared"), "is prepared")
    with holds(kubectl, team, SLOTS_KEEP_THEIR_SIZE) as (sizes,):
        with stands_still("kube-controller-manager"):
            team.patch("ie", objects.ENGINE, preemption=objects.lending())
            (claim,) = team.wait_all("jobs", claims, "the claim is made", job="survives", stage="Train")
            sluice.kill_leader()
            assert not team.every("pods", job="survives", stage="Train"), "1: claim made and nothing else"
            assert observed.slot_states(objects.ENGINE, team.name) == {"Serving"}
            requests = [HalfRequest(team, pod["metadata"]["name"], objects.ENGINE) for pod in team.slot_pods()]
        team.draining()
        sluice.kill_leader()
        assert is_draining(team.wait("ie", objects.ENGINE, bool, "is there")), "2: draining"
        (pod,) = team.every("pods", job="survives", stage="Train")
        assert pod["spec"]["schedulingGates"]

        sizes.begin()
        for request in requests:
            assert request.complete()
        team.wait_all("pods", is_nominated, "the gate is off", job="survives", stage="Train")
        sluice.kill_leader()
        (pod,) = team.every("pods", job="survives", stage="Train")
        assert "nodeName" not in pod["spec"], "3: gate just off"
        assert team.slot_sizes() == [1, 1]

        sizes.lift()
        team.training("survives")
        sizes.begin()
        sluice.kill_leader()  # 4: training

        team.wait("jobs", claim["metadata"]["name"], is_complete, "the training is over", seconds=LONGEST)
        sluice.kill_leader()
        assert sorted(team.slot_sizes()) == [0, 1], "5: the claim is over, its slot has not started"

    job = team.finished("survives")
    team.whole()
    assert [attempt["reason"] for attempt in job.attempts] == ["Done"]
    assert {attempt: len(pods) for attempt, pods in observed.trainers("survives").items()} == {"1": 1}
    assert observed.fewest_ready(objects.ENGINE) == 1
    assert job.digest == undisturbed.digests.get(objects.STEPS, job.digest)


LONGEST = 420


def claims(jobs: list[Object]) -> bool:
    """Whether there is a training Job, which is the claim."""
    return len(jobs) == 1


def is_nominated(pods: list[Object]) -> bool:
    """Whether the trainer's gate is off, and its node kept for it."""
    return any(not p["spec"].get("schedulingGates") and p["status"].get("nominatedNodeName") for p in pods)


def is_complete(job: Object) -> bool:
    """Whether a Job has succeeded, with no pod left that terminates."""
    return any(c["type"] == "Complete" and c["status"] == "True" for c in job["status"].get("conditions", ()))
