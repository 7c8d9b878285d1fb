"""What a small world decides about jobs that ask for nodes, and about their scale-up pods, as a test says it."""

from datetime import datetime, timedelta

from sluice_operator.facts.nodes import find_pool
from sluice_operator.observe.views import PodView
from sluice_operator.observe.world import job_key
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.job.decide import plan_job
from sluice_operator.plan.job.situation import JobDecision
from sluice_operator.plan.pool.scale_up import ScaleUp, plan_scale_up
from sluice_operator.settings import Limits
from tests.unit.plan.worlds import NOW, PREPARED, WorldBuilder, allocated

assert PREPARED.ended_at is not None
READY = PREPARED.ended_at
OVER = READY + timedelta(seconds=600)
"""When a job of these worlds has asked for long enough."""


def decide(builder: WorldBuilder, name: str, now: datetime = NOW) -> JobDecision:
    """What is decided about a job, after the pool's decision."""
    found = allocated(builder, now).waits.get(job_key("team", name))
    return plan_job(builder.world, builder.world.jobs[job_key("team", name)], now, Limits(), found)


def planned(builder: WorldBuilder, now: datetime = NOW) -> ScaleUp:
    """What the pool does about scale-up pods."""
    pool = find_pool(builder.world, "default")
    assert pool is not None
    return plan_scale_up(builder.world, take_stock(builder.world, pool), allocated(builder, now).asking, now)


def made(builder: WorldBuilder, now: datetime = NOW) -> list[str]:
    """The pods that it makes, as job-index."""
    return [f"{job.metadata.name}-{index}" for job, index in planned(builder, now).make]


def removed(builder: WorldBuilder, now: datetime = NOW) -> list[str]:
    """The jobs of the pods that it removes."""
    return [pod.owner.name for pod in planned(builder, now).remove if pod.owner]


def bound(builder: WorldBuilder, name: str, node: str, index: int = 0) -> PodView:
    return builder.scale_up_pod(builder.world.jobs[job_key("team", name)], index, node)
