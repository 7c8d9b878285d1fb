"""A pool's status: who has its GPUs, and how many jobs wait for them."""

from collections.abc import Sequence
from datetime import datetime

from sluice_api.conditions import READY, condition
from sluice_api.gpupool import GPUPool, GPUPoolStatus
from sluice_api.model import FIRST_MOMENT
from sluice_api.reasons import Reason
from sluice_operator.facts.nodes import named, pool_unusable, taken_by_elders
from sluice_operator.observe.world import World
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.stock import NodeStock, Stock, borrowed_on


def pool_status(world: World, stock: Stock, waiting: int, now: datetime) -> GPUPoolStatus:
    """The status of a pool.

    Args:
        stock: its GPUs, counted.
        waiting: the number of jobs that wait.
    """
    pool, nodes = stock.pool, list(stock.nodes.values())
    usable = [node for node in nodes if not node.unusable]
    reason = Reason.POOL_READY if usable else Reason.NO_NODES
    if pool.spec.by_dra and not world.serves_dra:
        reason = Reason.DRA_NOT_SERVED
    notes = [
        f"spec.nodeSelector: {count} more that it selects belong to pool {name}, which is older. Narrow one of the two."
        for name, count in taken_by_elders(world, pool).items()
    ]
    if why := pool_unusable(world, pool):
        notes.append(why)
    notes += _refusals(nodes)
    lent = sum(borrowed_on(world, live.claim, node.name) for node in nodes for live in node.claims)
    return GPUPoolStatus(
        observed_generation=pool.metadata.generation,
        conditions=(
            condition(
                pool.status.conditions,
                READY,
                "True" if usable else "False",
                reason,
                " ".join([f"{len(usable)} of {len(nodes)} nodes take pods.", *notes]),
                pool.metadata.generation,
                now,
            ),
        ),
        nodes=len(nodes),
        gpus=sum(node.gpus for node in nodes),
        inference=sum(node.inference for node in nodes),
        training=sum(node.training for node in nodes),
        lent=lent,
        others=sum(node.others for node in nodes),
        free=sum(node.free for node in nodes),
        waiting=waiting,
    )


def _refusals(nodes: Sequence[NodeStock]) -> list[str]:
    """Why nodes take no pods: a sentence for each reason, as a message is bounded and nodes may be many."""
    refused: dict[str, list[str]] = {}
    for node in nodes:
        if node.unusable:
            refused.setdefault(node.unusable, []).append(node.name)
    return [f"{named(names)} {'is' if len(names) == 1 else 'are'} {why}." for why, names in refused.items()]


def pool_usage(world: World, pool: GPUPool) -> GPUPoolStatus:
    """The same counts without conditions, for a gauge."""
    stock = take_stock(world, pool)
    counted = pool_status(world, stock, 0, FIRST_MOMENT)
    return counted.model_copy(update={"conditions": ()})
