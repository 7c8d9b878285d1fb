"""What a decision about who gets which GPU costs, in memory, as nodes and waiting jobs grow.

The nodes have 8 GPUs each. All are in use: by 200 engines of two replicas, of which one may be lent, and by training.
The waiting jobs are of 20 namespaces and 5 priorities, and half of them may borrow. `count` takes stock of a pool,
`decide` hands out its GPUs to all jobs at once, and `place` finds the victims for the next job. The first figure of
each is the median.
"""

import gc
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median

from dev.simulate.builder import NOW, WorldBuilder
from sluice_api.gpupool import NamespaceQuota
from sluice_operator.facts.nodes import find_pool
from sluice_operator.observe.world import World
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.pool.allocate import allocate
from sluice_operator.plan.pool.market import Market
from sluice_operator.plan.pool.placement import place
from sluice_operator.plan.pool.queue import line_up
from sluice_operator.plan.pool.reservations import Reservations
from sluice_operator.plan.stock import Held

GRID = ((10, 1_000), (100, 1_000), (1_000, 1_000), (1_000, 3_000), (1_000, 10_000))
ENGINES, NAMESPACES = 200, 20
TIMES, PLACEMENTS = 7, 200
_UNBOUND = NamespaceQuota()


def builder(nodes: int, jobs: int) -> WorldBuilder:
    """A pool in which nothing is free."""
    made = WorldBuilder()
    free = {made.node(8).key.name: 8 for _ in range(nodes)}
    for number in range(min(ENGINES, 2 * nodes)):
        terms = {"policy": "ScaleDown", "minReplicas": 1}
        engine = made.engine(f"e{number}", 2, namespace=f"ns{number % NAMESPACES}", preemption=terms)
        for index in (0, 1):
            node = f"n{(2 * number + index) % nodes + 1}"
            made.slot(engine, index, node)
            free[node] -= 1
    for node, left in free.items():
        for number in range(left):
            job = made.job(f"{node}-{number}", namespace=f"ns{number % NAMESPACES}")
            made.trainer_pod(made.stage_job(job, claim=made.claim(node)), node)
    for number in range(jobs):
        scheduling = {"policy": "Preempt" if number % 2 else "Queue", "priority": number % 5}
        made.job(f"waits-{number}", 1 + number % 4, namespace=f"ns{number % NAMESPACES}", scheduling=scheduling)
    return made


def milliseconds(world: World, work: Callable[[], object], times: int = TIMES) -> tuple[float, float, float]:
    """Median, least and most of what it takes after a change, without garbage collections in between."""
    took = []
    for _ in range(times):
        gc.collect()
        world.memo.clear()
        began = time.perf_counter()
        work()
        took.append((time.perf_counter() - began) * 1000)
    return median(took), min(took), max(took)


def choices(world: World) -> list[float]:
    """How long it takes to find the victims for one job, for many jobs that may borrow."""
    pool = find_pool(world, "default")
    assert pool is not None
    stock = take_stock(world, pool)
    market = Market(world, stock, NOW)
    took = []
    borrowers = [job for job in line_up(world, pool, NOW).pending if job.spec.scheduling.policy == "Preempt"]
    for job in borrowers[:PLACEMENTS]:
        terms = market.terms(job, Held())
        began = time.perf_counter()
        place(world, stock, job, terms, Reservations(), NOW)
        took.append((time.perf_counter() - began) * 1000)
    return sorted(took)


def main() -> None:
    """Print the table."""
    columns = ("count", "least", "most", "decide", "least", "most", "place p50", "p99")
    lines = [f"{'nodes':>6}{'waiting':>9}{'claims':>8}" + "".join(f"{name:>10}" for name in columns)]
    for nodes, jobs in GRID:
        world = builder(nodes, jobs).world
        pool = find_pool(world, "default")
        assert pool is not None
        counting = milliseconds(world, partial(take_stock, world, pool))
        deciding = milliseconds(world, partial(allocate, world, pool, NOW))
        took = choices(world)
        figures = (*counting, *deciding, took[len(took) // 2], took[int(len(took) * 0.99)])
        lines.append(f"{nodes:>6}{jobs:>9}{len(world.claiming):>8}" + "".join(f"{figure:>10.1f}" for figure in figures))
    sys.stdout.write("milliseconds\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
