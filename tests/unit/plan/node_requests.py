"""What a pool of a small world does about scale-up pods, as a test says it."""

from datetime import datetime

from sluice_operator.facts.nodes import find_pool
from sluice_operator.observe.views import PodView
from sluice_operator.observe.world import job_key
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.pool.scale_up import ScaleUp, plan_scale_up
from tests.unit.plan.worlds import NOW, WorldBuilder, allocated


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
