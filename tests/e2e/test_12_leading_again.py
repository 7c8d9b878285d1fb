"""J12: a leader leads a second time, and the API server is away: a training that runs goes on.

Silences are longer than one for which a training is stopped (45 s here). It stops the whole API server for minutes, so
only `make soak` plays it (SLUICE_AWAY_SECONDS).
"""

import os
import time
from collections.abc import Iterator

import pytest

from tests.e2e import objects
from tests.e2e.control_plane import stands_still
from tests.e2e.sluice import Sluice
from tests.e2e.team import JobState, Team

TOO_MANY = 100_000
"""Steps of a job that does not end by itself."""
STALLED_AFTER = 30
STOPPED_SECONDS = 50
"""Longer than a training may be silent. A kubelet waits for 55 s at least until it ends what answers no probe."""
AWAY_SECONDS = int(os.environ.get("SLUICE_AWAY_SECONDS", "0"))


@pytest.fixture
def impatient(sluice: Sluice) -> Iterator[Sluice]:
    """Sluice, that stops a training which is silent for 45 s."""
    sluice.install(f"timing.stalledAfterSeconds={STALLED_AFTER}")
    yield sluice
    sluice.install()


def goes_on(team: Team, before: JobState) -> JobState:
    """It is the same attempt, it makes steps, and its operator hears of them."""
    after = team.wait_job("endures", lambda job: job.step > before.step, "makes steps")
    (pod,) = team.every("pods", job="endures", stage="Train")
    assert (pod["metadata"]["labels"]["sluice.dev/attempt"], pod["status"]["phase"]) == ("1", "Running")
    assert after.progress["attempt"] == 1
    return after


@pytest.mark.alone
@pytest.mark.skipif(not AWAY_SECONDS, reason="make soak: the API server is away for minutes")
def test_training_continues_when_a_leader_leads_again(team: Team, impatient: Sluice) -> None:
    """Nobody stops it for what nobody could hear."""
    team.apply(objects.job("endures", steps=TOO_MANY))
    state = team.training("endures", step=2)

    first = impatient.leader()
    with impatient.stopped(first):
        began = time.monotonic()
        second = impatient.other_leader_than(first)
        state = goes_on(team, state)
        time.sleep(max(0.0, began + STOPPED_SECONDS - time.monotonic()))
    impatient.kill(second)
    assert impatient.other_leader_than(second) == first, "the one that was stopped leads again"
    time.sleep(5)
    state = goes_on(team, state)

    with stands_still("kube-apiserver"):
        time.sleep(AWAY_SECONDS)
    impatient.leader()
    time.sleep(5)
    goes_on(team, state)
    team.delete("ftj", "endures")
    team.whole()
