"""What a node of a pool lacks for a job besides GPUs, once some slots have left it."""

from collections.abc import Collection

from sluice_api.finetunejob import FineTuneJob
from sluice_operator.observe.views import Key, Resources
from sluice_operator.observe.world import World
from sluice_operator.plan.allocation.interruption import gives_way_at
from sluice_operator.plan.allocation.inventory import NodeStock, PlacedSlot, Stock
from sluice_operator.plan.facts.attempts import trainer_pods
from sluice_operator.plan.facts.proof import coming
from sluice_operator.plan.facts.room import claims_of_job, need_of, shortage, unreachable_volume
from sluice_operator.plan.facts.slots import floor_of, sleeps
from sluice_operator.plan.fence import each


def lack_on(
    world: World,
    node: NodeStock,
    job: FineTuneJob,
    leaving: Collection[Key],
    pods: int = 1,
    kept: Resources | None = None,
) -> str:
    """Why so many of the job's pods would not fit once others are gone, in words; empty when they would.

    Args:
        kept: what must be left for others.
    """
    others = [*coming(world, node.claims, node.name), kept or {}]
    lack = shortage(world, node.node, need_of(job.spec.resources), leaving, others, pods)
    return lack or unreachable_volume(world, job.metadata.namespace, claims_of_job(job), node.node)


def lack_everywhere(world: World, stock: Stock, job: FineTuneJob, lenders: Collection[str]) -> str:
    """Why the job fits no node even if all left that may ever leave for it; empty when it fits one."""
    lacks = []
    for node in stock.nodes.values():
        if node.refusal:
            continue
        slots = {slot.pod for slot in _lendable(stock, node, lenders) if slot.pod and not sleeps(slot.engine)}
        leavers = each(node.claims, lambda live: live.key, lambda live: (live, gives_way_at(world, live, job)))
        training = {pod.key for live, at in leavers if at for pod in trainer_pods(world, live.stage_job)}
        lack = lack_on(world, node, job, slots | training)
        if not lack:
            return ""
        lacks.append(f"{node.name} lacks {lack}")
    return lacks[0] if lacks else ""


def _lendable(stock: Stock, node: NodeStock, lenders: Collection[str]) -> list[PlacedSlot]:
    """Slots of a node that may be lent at once, each engine keeping its floor."""
    left = {uid: len(slots) for uid, slots in stock.slots_of.items()}
    found = []
    for slot in node.slots:
        engine = slot.engine
        if slot.is_open and engine.metadata.uid in lenders and left[engine.metadata.uid] > floor_of(engine):
            left[engine.metadata.uid] -= 1
            found.append(slot)
    return found
