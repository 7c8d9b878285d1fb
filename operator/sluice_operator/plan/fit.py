"""What a node of a pool lacks for a job besides GPUs, once some slots have left it."""

from collections.abc import Iterable

from sluice_api.finetunejob import FineTuneJob, Policy
from sluice_operator.observe.world import World
from sluice_operator.plan.inventory import NodeStock, PlacedSlot, Stock
from sluice_operator.plan.proof import coming
from sluice_operator.plan.room import claims_of_job, need_of, shortage, unreachable_volume
from sluice_operator.plan.victims import lending_refusal


def lack_on(world: World, node: NodeStock, job: FineTuneJob, gone: Iterable[PlacedSlot]) -> str:
    """Why the job's pod would not fit, in words; empty when it would."""
    leaving = {slot.pod for slot in gone if slot.pod is not None}
    others = coming(world, list(node.claims), None, node.name)
    lack = shortage(world, node.node, need_of(job.spec.resources), leaving, others)
    return lack or unreachable_volume(world, job.metadata.namespace, claims_of_job(job), node.node)


def lack_everywhere(world: World, stock: Stock, job: FineTuneJob) -> str:
    """Why the job fits no node even if every slot left that may be lent to it; empty when it fits one."""
    lacks = []
    for node in stock.nodes.values():
        if node.refusal:
            continue
        borrows = job.spec.scheduling.policy is Policy.PREEMPT
        gone = [slot for slot in node.slots if borrows and lending_refusal(slot.engine, job) is None]
        lacks.append((node.name, lack_on(world, node, job, gone)))
    if not lacks or not all(lack for _, lack in lacks):
        return ""
    name, lack = lacks[0]
    return f"{name} lacks {lack}"
