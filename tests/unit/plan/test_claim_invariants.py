"""That the stories would see it: promises that random stories were not, or hardly, seen to break, broken by hand."""

import pytest

from dev.simulate.builder import GPU, NOW, WorldBuilder
from dev.simulate.cluster import Cluster
from sluice_api.claim import Claim, NodeAllocation
from sluice_operator.facts.claims import attempt_ref
from sluice_operator.facts.live_claims import live_claims, live_claims_of
from sluice_operator.facts.nodes import find_pool
from sluice_operator.observe.world import job_key
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.job import claim_steps
from tests.unit.plan.claim_invariants import Made
from tests.unit.plan.state_machine import Lending
from tests.unit.plan.worlds import allocated, key_of, parse

GROUP = "pool: 1 1 1 gpus | low: needs 1, pods 2, yields, on n1 n2 | high: needs 1, pods 2, queue, priority 5"
PAIR = "pool: 2 gpus | a: needs 1, yields, on n1 | b: needs 1, yields, on n1 | high: needs 1, queue, priority 5"


def made(builder: WorldBuilder, *also: str) -> Made:
    """What `high` is given; and it takes the place of these, too."""
    pool = find_pool(builder.world, "default")
    assert pool is not None
    decided, before = allocated(builder), take_stock(builder.world, pool)
    high = builder.world.jobs[job_key("team", "high")]
    claim: Claim = decided.claims[key_of(high)]
    needless = tuple(attempt_ref(live, "n1") for live in live_claims(builder.world) if live.job.metadata.name in also)
    place, *others = claim.places
    places = (place.model_copy(update={"preempted": (*place.preempted, *needless)}), *others)
    builder.stage_job(high, claim=claim.model_copy(update={"places": places}))
    (live,) = live_claims_of(builder.world, high)
    return Made(builder.world, pool, NOW, live, decided, before)


@pytest.mark.parametrize("world", [PAIR, GROUP])
def test_decided_claims_keep_the_invariants(world: str) -> None:
    """The preemptor needs one node of the group, and the group leaves both."""
    made(parse(world)).keeps_its_promises(quota=None)


def test_needless_preemption_is_detected() -> None:
    with pytest.raises(AssertionError, match="somebody gave way who could be spared"):
        made(parse(PAIR), "a").keeps_its_promises(quota=None)


def test_preemption_by_a_job_on_a_free_gpu_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = parse("pool: 2 gpus | low: needs 1, yields, on n1")
    (low,) = live_claims(builder.world)
    place = NodeAllocation(node="n1", preempted=(attempt_ref(low, "n1"),))
    claim = Claim(pool="default", resource=GPU, gpus=1, places=(place,), term=1)
    high = builder.job("high", scheduling={"policy": "Queue", "priority": 5})
    builder.trainer_pod(builder.stage_job(high, claim=claim), "n1")
    story = Lending()
    story.cluster = Cluster()
    story.cluster.builder = builder
    story.nobody_stops_for_who_found_a_free_gpu()
    monkeypatch.setattr(claim_steps, "_takes_its_place", lambda *_: True)
    with pytest.raises(AssertionError, match="team/low stops for nothing"):
        story.nobody_stops_for_who_found_a_free_gpu()
