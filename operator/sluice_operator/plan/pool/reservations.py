"""What is reserved for jobs that wait in front? A job behind may take only what can never be theirs."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from weakref import WeakValueDictionary

from sluice_api.finetunejob import FineTuneJob, JobResources
from sluice_api.reasons import Reason
from sluice_api.sources import is_object, volume_path
from sluice_operator.facts.fit import COUNTED, bound_to_nodes, like, most_pods, need_of, never_reaches, volume_claims_of
from sluice_operator.observe.fence import each
from sluice_operator.observe.memo import once_a_job, once_a_world
from sluice_operator.observe.views import Resources
from sluice_operator.observe.world import World, key_of
from sluice_operator.plan.floor import in_demand, is_held_by_load
from sluice_operator.plan.obstacle import Obstacle, Remedy
from sluice_operator.plan.pool.preemption import preemption_obstacle
from sluice_operator.plan.pool.terms import Terms
from sluice_operator.plan.stock import NOTHING, Held, NodeStock, Stock, is_guest

HIGHEST_PRIORITY = 1000


SOMEBODY = Obstacle(Reason.BEHIND_IN_QUEUE, "Others are in front.")
"""For a job so far behind that no job in front of it is named."""


def behind(front: FineTuneJob, priority: int) -> Obstacle:
    """The obstacle that a job is behind another.

    Args:
        priority: the place in the queue of the job in front, as a priority (with what ageing adds).
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
    """What is reserved. It grows with each job of the queue that has to wait. Below, "they" are these jobs."""

    nodes: dict[str, Obstacle] = field(default_factory=dict)
    """By name, nodes that would take a pod of one of them if they were empty. Free GPUs elsewhere can't help them."""
    room: dict[str, int] = field(default_factory=dict)
    """Cpu, memory and disk to keep free on each of these nodes: for each the most that all pods of one job need."""
    lenders: dict[str, Obstacle] = field(default_factory=dict)
    """By uid, engines that lend to one of them now or soon, or beside whose replicas one of them may train."""
    fronts: list[Obstacle] = field(default_factory=list)
    """For each of them the obstacle of being behind it, in their order."""
    of_namespace: dict[str, Held] = field(default_factory=dict)
    """What they would hold, by namespace: this part of a quota must be left when their turn comes."""
    _kinds: dict[object, Terms] = field(default_factory=dict)
    """By kind of job (`alike`), the terms of one that waits. Since then only less is left for others of the kind."""
    _shapes: set[tuple[JobResources, str, tuple[str, ...]]] = field(default_factory=set)
    """Resources of the jobs for which nodes are reserved already, with the volumes that bind a job to certain nodes."""
    _classes: dict[object, list[NodeStock]] = field(default_factory=dict)
    """Nodes that are alike in all that decides whether a pod fits on the empty node."""

    def reserve(self, world: World, stock: Stock, job: FineTuneJob, terms: Terms, front: Obstacle) -> None:
        """Reserve what a waiting job could use on these terms.

        A guest needs no GPUs, only a replica that is not lent. A job whose namespace is full can't use free GPUs.

        Args:
            front: the obstacle that later jobs meet when they want the same.
        """
        guest, shape = is_guest(stock.pool, job), job.spec.resources
        # Of its volumes only those count that can be mounted on certain nodes only.
        bound = _bound(world, job) if world.volumes else ()
        where = (shape, job.metadata.namespace if bound else "", bound)
        self.fronts.append(front)
        self.reserve_quota(stock, job, terms)
        # An engine that is reserved already stays so for the earlier job.
        if not terms.reserves <= self.lenders.keys():
            self.lenders = dict.fromkeys(terms.reserves, front) | self.lenders
        if guest or terms.full or where in self._shapes:
            return
        self._shapes.add(where)
        for node in self._nodes_for(world, stock, shape):
            if not never_reaches(world, job.metadata.namespace, bound, node.node):
                self.nodes.setdefault(node.name, front)
        need = need_of(shape)
        self.room = {of: max(self.room.get(of, 0), shape.nodes * need.get(of, 0)) for of in COUNTED}

    def reserve_quota(self, stock: Stock, job: FineTuneJob, terms: Terms | None = None) -> None:
        """Reserve a waiting job's part of its namespace's quota against the namespace's jobs behind it.

        Args:
            terms: on which it may borrow; None if it may not.
        """
        namespace, gpus = job.metadata.namespace, job.spec.resources.all_gpus
        borrows = terms and terms.reserves and not is_guest(stock.pool, job)
        self.of_namespace[namespace] = self.of(namespace).plus(gpus, gpus if borrows else 0)

    def note(self, world: World, job: FineTuneJob, terms: Terms) -> None:
        """Remember that a job of this kind waits; not if it asks for nodes, as each such job has an end of its own."""
        if job.spec.scheduling.scale_up_first is None:
            self._kinds[alike(world, job)] = terms

    def terms_of_alike(self, world: World, job: FineTuneJob) -> Terms | None:
        """The terms of a job in front that waits and is like this one; None if there is none."""
        return self._kinds.get(alike(world, job))

    def of(self, namespace: str) -> Held:
        """What the waiting jobs of a namespace would hold."""
        return self.of_namespace.get(namespace, NOTHING)

    def room_on(self, node: NodeStock) -> Resources:
        """Cpu, memory and disk of a node to leave free, so that a job in front fits there as soon as it has GPUs."""
        return self.room if node.name in self.nodes else {}

    def leaves_free(self, stock: Stock, job: FineTuneJob) -> bool:
        """Whether a node that is not reserved has enough free GPUs for one pod of the job.

        Never for a job of the same resources as one in front: every node that could take it is reserved.
        """
        if (job.spec.resources, "", ()) in self._shapes or len(self.nodes) == len(stock.nodes):
            return False
        gpus = job.spec.resources.gpus
        return any(node.free >= gpus for name, node in stock.nodes.items() if name not in self.nodes)

    def later(self, world: World, stock: Stock, job: FineTuneJob, terms: Terms, now: datetime) -> Sequence[Obstacle]:
        """Of what keeps a job from GPUs, that which ends by no event: training that gives way later, and load."""
        found: list[Obstacle] = []
        if stock.load and not is_guest(stock.pool, job):
            by_load = (terms.lenders & stock.load.keys()) - self.lenders.keys()
            engines = (engine for engine in stock.engines if engine.metadata.uid in by_load)
            found += (in_demand(engine, now) for engine in engines if is_held_by_load(stock, engine))
        if terms.preempts or self.preempts:  # as for most of a long queue
            return found
        looks = each(stock.staying, lambda live: live.key, lambda live: preemption_obstacle(world, live, job, now))
        return [*found, *(obstacle for obstacle in looks if obstacle)]

    @property
    def preempts(self) -> Obstacle | None:
        """Why no training gives way to a job behind: one in front could use some node. None if no node is reserved."""
        return next(iter(self.nodes.values()), None)

    def _nodes_for(self, world: World, stock: Stock, shape: JobResources) -> Iterator[NodeStock]:
        """The nodes that would take one such pod if they were empty. Asked once for nodes that are alike."""
        if not self._classes:
            for node in stock.nodes.values():
                self._classes.setdefault((node.gpus, like(world, node.node)), []).append(node)
        need = need_of(shape)
        for nodes in self._classes.values():
            if most_pods(world, nodes[0].node, nodes[0].gpus, shape.gpus, need):
                yield from nodes


@once_a_job
def alike(_world: World, job: FineTuneJob) -> object:
    """The same object for all jobs that are alike, another object for other jobs.

    Jobs are alike if they agree in everything that a refusal or a place may depend on, whoever made them and when.
    """
    spec = job.spec
    volumes = tuple(path.claim if (path := volume_path(uri)) else "" for uri in spec.addresses.values())
    opened_by = spec.output.credentials if is_object(spec.output.uri) else None
    return _class_of(
        (
            job.metadata.namespace,
            spec.resources,
            spec.scheduling,
            spec.publish,
            spec.lora,
            spec.model,
            volumes,
            opened_by,
        )
    )


@once_a_world(alike)
def _bound(world: World, job: FineTuneJob) -> tuple[str, ...]:
    """Those of a job's volume claims whose volume can be mounted on certain nodes only."""
    return bound_to_nodes(world, job.metadata.namespace, volume_claims_of(world, job))


class _Alike:
    """What jobs that are alike have in common, by identity: it is compared far oftener than it is found."""


_ALIKE: WeakValueDictionary[Hashable, _Alike] = WeakValueDictionary()
"""Each is held by the memos of its jobs, and goes with the last of them, with all that the jobs said."""


def _class_of(common: Hashable) -> _Alike:
    found = _ALIKE.get(common)
    if found is None:
        found = _ALIKE[common] = _Alike()
    return found
