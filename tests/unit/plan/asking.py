"""What a pool of a small world does about scale-up pods, as a test says it."""

from datetime import datetime

from sluice_operator.facts.nodes import find_pool
from sluice_operator.observe.views import PodView
from sluice_operator.observe.world import job_key
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.pool.scale_up import ScaleUp, plan_scale_up
from tests.unit.plan.worlds import NOW, Town, allocated


def planned(town: Town, now: datetime = NOW) -> ScaleUp:
    """What the pool does about scale-up pods."""
    pool = find_pool(town.world, "default")
    assert pool is not None
    return plan_scale_up(town.world, take_stock(town.world, pool), allocated(town, now).asking, now)


def made(town: Town, now: datetime = NOW) -> list[str]:
    """The pods that it makes, as job-index."""
    return [f"{job.metadata.name}-{index}" for job, index in planned(town, now).make]


def removed(town: Town, now: datetime = NOW) -> list[str]:
    """The jobs of the pods that it removes."""
    return [pod.owner.name for pod in planned(town, now).remove if pod.owner]


def bound(town: Town, name: str, node: str, index: int = 0) -> PodView:
    return town.scale_up_pod(town.world.jobs[job_key("team", name)], index, node)
