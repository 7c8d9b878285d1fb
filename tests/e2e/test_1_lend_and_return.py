"""J1: an engine lends a replica to a job, answers all the while, gets it back, and serves the result.

Seen to fail when a lent replica was stopped without waiting for what it had in flight.
"""

import time

from tests.e2e import objects
from tests.e2e.admission_hold import HalfRequest
from tests.e2e.conftest import Undisturbed
from tests.e2e.load_generator import asking
from tests.e2e.observer import Observed, restarts_of
from tests.e2e.team import Team

ALIAS = "support-tone"
QUESTION = "Where is parcel 7?"
PATIENCE_SECONDS = 3


def test_lend_and_return(team: Team, observed: Observed, undisturbed: Undisturbed) -> None:
    """No request fails, the loan is one replica and ends, both replicas get the adapter, the base stays as it was."""
    base = team.chat(objects.ENGINE, QUESTION)
    before = {pod["metadata"]["uid"]: pod for pod in team.slot_pods()}

    with asking(team) as asked:
        slow = [HalfRequest(team, pod["metadata"]["name"], objects.ENGINE) for pod in team.slot_pods()]
        team.apply(objects.job(ALIAS, publish=ALIAS))
        team.draining()
        time.sleep(PATIENCE_SECONDS)  # nothing announces that a replica goes on waiting
        assert team.slot_sizes() == [1, 1], "a replica stops only after its last request"
        assert all(request.complete() for request in slow)
        team.training(ALIAS)
        engine = team.wait("ie", objects.ENGINE, lambda e: e["status"]["lent"] == 1, "one replica is lent")
        assert engine["status"]["ready"] == "1/2"
        job = team.finished(ALIAS)
        assert team.whole()["status"]["slots"][0]["state"] == "Serving"
        team.wait("ad", ALIAS, lambda ad: ad["status"].get("loaded") == "2/2", "both replicas have the adapter")
    undisturbed.digests[objects.STEPS] = job.digest

    assert not asked.failed, f"{len(asked.failed)} of {len(asked.answers)} requests failed"
    assert asked.count(stream=True)
    assert asked.count(stream=False)

    after = {pod["metadata"]["uid"]: pod for pod in team.slot_pods()}
    stayed = before.keys() & after.keys()
    assert len(stayed) == 1, "one replica was lent, the other one stayed"
    assert not any(map(restarts_of, after.values()))
    assert observed.fewest_ready(objects.ENGINE) == 1
    assert observed.lent(objects.ENGINE, team.name) == [0, 1, 0]

    alias = team.chat(ALIAS, QUESTION)
    assert alias.model == ALIAS
    assert alias.text != base.text
    for pod in after.values():
        name = pod["metadata"]["name"]
        assert {objects.ENGINE, ALIAS} <= team.models(name)
        assert team.chat(ALIAS, QUESTION, pod=name) == alias
        assert team.chat(objects.ENGINE, QUESTION, pod=name) == base
