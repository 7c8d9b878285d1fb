"""What is kept for the jobs that wait in front: whoever stands behind may take only what can never be theirs."""

from collections.abc import Collection
from dataclasses import dataclass, field

from sluice_api.finetunejob import FineTuneJob, JobResources
from sluice_operator.plan.borrowing import Held, Terms
from sluice_operator.plan.guests import is_guest
from sluice_operator.plan.inventory import Stock
from sluice_operator.plan.room import most_pods, need_of


@dataclass
class Kept:
    """Grows with each job of a queue that has to wait."""

    nodes: frozenset[str] = frozenset()
    """Nodes that, empty, would take a pod of one of them. Free GPUs anywhere else are of no use to them."""
    lenders: frozenset[str] = frozenset()
    """Uids of the engines that lend to one of them, or beside which one of them may train."""
    of_namespace: dict[str, Held] = field(default_factory=dict)
    """What they would have: the quota that it takes must not be gone when their turn comes."""
    _shapes: set[JobResources] = field(default_factory=set)

    def keep(self, stock: Stock, job: FineTuneJob, terms: Terms) -> None:
        """A job waits that is on these terms. A guest needs no GPUs, only a replica that is not lent."""
        guest = is_guest(stock.pool, job)
        self.lenders |= terms.lenders
        self.keep_quota(job, borrows=bool(terms.lenders) and not guest)
        shape = job.spec.resources
        if not guest and shape not in self._shapes and len(self.nodes) < len(stock.nodes):
            self._shapes.add(shape)
            self.nodes |= set(_nodes_for(stock, shape))

    def keep_quota(self, job: FineTuneJob, *, borrows: bool = False) -> None:
        """A job waits, if only for its namespace's quota: no other job of the namespace takes that first."""
        namespace, gpus = job.metadata.namespace, job.spec.resources.all_gpus
        self.of_namespace[namespace] = self.of(namespace).plus(gpus, gpus if borrows else 0)

    def of(self, namespace: str) -> Held:
        """What the waiting jobs of a namespace would have."""
        return self.of_namespace.get(namespace, Held())


def _nodes_for(stock: Stock, shape: JobResources) -> Collection[str]:
    """The nodes of a pool that would take one such pod if nothing else were there."""
    need = need_of(shape)
    return [node.name for node in stock.nodes.values() if most_pods(node.node, node.gpus, shape.gpus, need)]
