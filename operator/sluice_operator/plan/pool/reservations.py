"""What is reserved for the jobs that wait in front: whoever stands behind may take only what can never be theirs."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from sluice_api.finetunejob import FineTuneJob, JobResources
from sluice_api.reasons import Reason
from sluice_api.sources import volume_path
from sluice_operator.facts.fit import COUNTED, like, most_pods, need_of, volume_claims_of
from sluice_operator.observe.memo import once_a_job
from sluice_operator.observe.views import Resources
from sluice_operator.observe.world import World, key_of
from sluice_operator.plan.obstacle import Obstacle, Remedy
from sluice_operator.plan.pool.terms import Terms
from sluice_operator.plan.stock import Held, NodeStock, Stock, is_guest

HIGHEST_PRIORITY = 1000


SOMEBODY = Obstacle(Reason.BEHIND_IN_QUEUE, "Others are in front.")
"""For whoever is so far behind that it is told of nobody by name."""


def behind(front: FineTuneJob, priority: int) -> Obstacle:
    """That a job is behind another.

    Args:
        priority: at which that one stands in the queue.
    """
    above = priority + 1
    raised = Remedy(f"raise scheduling.priority to {above}", field="scheduling.priority", value=above)
    return Obstacle(
        Reason.BEHIND_IN_QUEUE,
        f"{front.metadata.full_name} is in front.",
        ends_with=(key_of(front),),
        remedies=(raised,) if above <= HIGHEST_PRIORITY else (),
    )


@dataclass
class Reservations:
    """Grows with each job of a queue that has to wait."""

    nodes: dict[str, Obstacle] = field(default_factory=dict)
    """Nodes that, empty, would take a pod of one of them. Free GPUs anywhere else are of no use to them."""
    room: dict[str, int] = field(default_factory=dict)
    """Cpu, memory and disk that the largest of them needs of such a node."""
    lenders: dict[str, Obstacle] = field(default_factory=dict)
    """Uids of the engines that lend to one of them, now or soon, or beside which one of them may train."""
    fronts: list[Obstacle] = field(default_factory=list)
    """That one is behind each of them, in their order."""
    of_namespace: dict[str, Held] = field(default_factory=dict)
    """What they would have: the quota that it takes must not be gone when their turn comes."""
    _kinds: dict[object, Terms] = field(default_factory=dict)
    """Kinds of jobs of which one waits, with its terms: for those that are alike what is left has only become less."""
    _shapes: set[JobResources] = field(default_factory=set)
    _classes: dict[object, list[NodeStock]] = field(default_factory=dict)

    def reserve(self, stock: Stock, job: FineTuneJob, terms: Terms, front: Obstacle) -> None:
        """A job waits that is on these terms.

        A guest needs no GPUs, only a replica that is not lent. To one whose namespace is full no free GPU is of use.

        Args:
            front: what others are told who want the same.
        """
        guest, shape = is_guest(stock.pool, job), job.spec.resources
        self.fronts.append(front)
        if not terms.reserves <= self.lenders.keys():
            self.lenders = dict.fromkeys(terms.reserves, front) | self.lenders
        self.reserve_quota(job, borrows=bool(terms.reserves) and not guest)
        if guest or terms.full or shape in self._shapes:
            return
        self._shapes.add(shape)
        for name in self._nodes_for(stock, shape):
            self.nodes.setdefault(name, front)
        need = need_of(shape)
        self.room = {of: max(self.room.get(of, 0), shape.nodes * need.get(of, 0)) for of in COUNTED}

    def reserve_quota(self, job: FineTuneJob, *, borrows: bool = False) -> None:
        """A job waits, if only for its namespace's quota: no other job of the namespace takes that first."""
        namespace, gpus = job.metadata.namespace, job.spec.resources.all_gpus
        self.of_namespace[namespace] = self.of(namespace).plus(gpus, gpus if borrows else 0)

    def note(self, world: World, job: FineTuneJob, terms: Terms) -> None:
        """A job of a kind waits. Those that ask for nodes do so until their own time, so none is like another."""
        if job.spec.scheduling.scale_up_first is None:
            self._kinds[alike(world, job)] = terms

    def terms_of_alike(self, world: World, job: FineTuneJob) -> Terms | None:
        """The terms of a job in front that is like this one and waits."""
        return self._kinds.get(alike(world, job))

    def of(self, namespace: str) -> Held:
        """What the waiting jobs of a namespace would have."""
        return self.of_namespace.get(namespace, Held())

    def room_on(self, node: NodeStock) -> Resources:
        """What of a node besides GPUs is out of reach, so that a job in front fits there as soon as it has GPUs."""
        return self.room if node.name in self.nodes else {}

    def leaves_free(self, stock: Stock, job: FineTuneJob) -> bool:
        """Whether GPUs may be free for a job on a node that is not kept. For none that is like one in front."""
        if job.spec.resources in self._shapes or len(self.nodes) == len(stock.nodes):
            return False
        gpus = job.spec.resources.gpus
        return any(node.free >= gpus for name, node in stock.nodes.items() if name not in self.nodes)

    @property
    def preempts(self) -> Obstacle | None:
        """Why nobody gives way to a job behind: one in front could use any node."""
        return next(iter(self.nodes.values()), None)

    def _nodes_for(self, stock: Stock, shape: JobResources) -> Iterator[str]:
        """The nodes that would take one such pod if nothing else were there: asked once of nodes that are alike."""
        if not self._classes:
            for node in stock.nodes.values():
                self._classes.setdefault((node.gpus, like(node.node)), []).append(node)
        need = need_of(shape)
        for nodes in self._classes.values():
            if most_pods(nodes[0].node, nodes[0].gpus, shape.gpus, need):
                yield from (node.name for node in nodes)


@once_a_job
def alike(_world: World, job: FineTuneJob) -> object:
    """The same object for jobs that are alike, another for others.

    Alike are those that agree in all that a refusal or a place may depend on, whoever made them and when.
    """
    spec, output = job.spec, volume_path(job.spec.output.uri)
    volumes = (volume_claims_of(job), output.claim if output else "")
    return _class_of(
        (job.metadata.namespace, spec.resources, spec.scheduling, spec.publish, spec.lora, spec.model, volumes)
    )


@lru_cache(maxsize=65_536)
def _class_of(_common: Hashable) -> object:
    return object()
