"""J8: Sluice is upgraded and uninstalled in the middle of a loan. Sluice is there again afterwards.

Seen to fail when the uninstall gave nothing back (uninstall.giveBack: false).
"""

from collections.abc import Iterator

import pytest

from tests.e2e import objects
from tests.e2e.kubectl import Kubectl
from tests.e2e.observer import Observed, is_ready, restarts_of
from tests.e2e.sluice import Sluice
from tests.e2e.team import LONG, Team

ENDLESS = 100_000


@pytest.fixture
def reinstalled(sluice: Sluice) -> Iterator[Sluice]:
    """Sluice, there again after the test."""
    yield sluice
    sluice.install()


@pytest.mark.alone
def test_upgrade_then_uninstall_during_a_loan(
    team: Team, kubectl: Kubectl, reinstalled: Sluice, observed: Observed
) -> None:
    """An upgrade touches neither the running job nor an engine; an uninstall gives back what is lent, and no more."""
    team.apply(objects.job("goes-on", steps=ENDLESS))
    before = team.training("goes-on").step
    (trainer,) = team.every("pods", job="goes-on", stage="Train")
    (kept,) = team.slot_pods()
    leader = reinstalled.leader()

    reinstalled.install("podAnnotations.upgraded=yes")
    reinstalled.other_leader_than(leader)
    team.training("goes-on", step=before + 1)
    assert list(observed.all("pods", job="goes-on", stage="Train")) == [trainer["metadata"]["uid"]]
    assert [pod["metadata"]["uid"] for pod in team.slot_pods()] == [kept["metadata"]["uid"]]

    reinstalled.uninstall()
    assert team.slot_sizes() == [1, 1], "the engine is as large as it should be"
    team.wait_all("jobs", lambda jobs: not jobs, "the training Job is gone", job="goes-on", stage="Train")
    pods = team.wait_all(
        "pods", lambda pods: sum(map(is_ready, pods)) == 2, "both replicas serve", LONG, engine=objects.ENGINE
    )
    assert kept["metadata"]["uid"] in {pod["metadata"]["uid"] for pod in pods}
    assert not any(map(restarts_of, pods))
    assert team.get("ftj", "goes-on"), "what users made stays, and so do its definitions"
    assert team.get("ie", objects.ENGINE)
    (drained,) = (pod for pod in pods if pod["metadata"]["uid"] != kept["metadata"]["uid"])
    team.delete(f"pod/{drained['metadata']['name']}")
    team.wait_all("pods", lambda pods: sum(map(is_ready, pods)) == 2, "it is back", LONG, engine=objects.ENGINE)

    kubectl("delete", "namespace", team.name, f"--timeout={LONG}s", patience=LONG)
