"""Who has which GPU, as values: a pool's nodes with their claims, slots and what is free."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import NamedTuple

from sluice_api.claim import Claim, NodeAllocation, Share, SlotRef
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.scheduling import GiveWay, Policy
from sluice_operator.facts.claims import LiveClaim, gpus_of_slots, taken_by
from sluice_operator.observe.views import Key, NodeView
from sluice_operator.observe.world import World
from sluice_operator.plan.obstacle import Obstacle

UNBOUNDED = 1_000_000


class Held(NamedTuple):
    """GPUs of a pool that one namespace has."""

    gpus: int = 0
    """Of its jobs."""
    borrowed: int = 0
    """Of these, borrowed from engines."""
    serving: int = 0
    """Of its engines' replicas, those that are lent included."""
    own: int = 0
    """Of these, lent to its own jobs: they are among `gpus` too."""

    @property
    def total(self) -> int:
        """Of jobs and replicas together, each GPU once."""
        return self.gpus + self.serving - self.own

    def plus(self, gpus: int = 0, borrowed: int = 0, serving: int = 0) -> "Held":
        """The same with more."""
        return self._replace(gpus=self.gpus + gpus, borrowed=self.borrowed + borrowed, serving=self.serving + serving)

    def with_claim(self, world: World, claim: Claim, namespace: str) -> "Held":
        """The same with one claim more, of a job of this namespace."""
        borrowed = sum(borrowed_on(world, claim, place.node) for place in claim.places)
        mine = sum(_of_own(world, claim, place, namespace) for place in claim.places)
        return self.plus(claim.all_gpus, borrowed)._replace(own=self.own + mine)


def borrowed_on(world: World, claim: Claim, node: str) -> int:
    """GPUs of a node that a claim has borrowed and uses; what is left of a larger slot it only keeps."""
    place = claim.on(node)
    return min(claim.gpus_on(node), gpus_of_slots(world, place.borrowed)) if place else 0


def _of_own(world: World, claim: Claim, place: NodeAllocation, namespace: str) -> int:
    """GPUs of a place that are borrowed from engines of the job's own namespace."""
    slots = [slot for slot in place.borrowed if slot.namespace == namespace]
    return min(claim.gpus_on(place.node), gpus_of_slots(world, slots))


@dataclass(frozen=True, slots=True)
class PlacedSlot:
    """An engine's slot on a node: where its pod is bound, or where there is room for it."""

    slot: SlotRef
    engine: InferenceEngine
    gpus: int
    created: datetime
    pod: Key | None = None
    serving: bool = False
    in_flight: int = 0
    shared: int = 0
    """Percent of its GPUs' memory that jobs beside it use: its guests. It is not lent then."""
    takes_guests: bool = False
    """Whether jobs may train beside it, as far as there is room: its vLLM has what the spec says, and it stays."""
    lendable: bool = True
    """Whether it can make room as its engine's policy says, whatever else speaks against it."""
    stays: bool = True
    """Whether its engine still wants it: one that is on its way out keeps nobody above a floor."""

    @property
    def is_open(self) -> bool:
        """Whether it may be lent, as far as it depends on itself."""
        return self.lendable and not self.shared


@dataclass(frozen=True)
class NodeStock:
    """One node's GPUs."""

    node: NodeView
    gpus: int
    refusal: str
    """Why it takes no new training pod; empty when it does."""
    claims: tuple[LiveClaim, ...] = ()
    claimed: int = 0
    slots: tuple[PlacedSlot, ...] = ()
    leaving: int = 0
    """GPUs of slots that are lent, but started here and not where they were lent from: they stop for the borrower."""
    ending: Mapping[str, int] = field(default_factory=dict)
    """GPUs of training whose claim is over and whose pods are not gone: its job was deleted, suspended or orphaned. By
    its namespace."""
    others: int = 0
    """GPUs of pods that are neither training's nor a slot's."""

    @property
    def name(self) -> str:
        """The node's name."""
        return self.node.key.name

    @cached_property
    def inference(self) -> int:
        """GPUs that engines' slots have, or are about to take."""
        return sum(slot.gpus for slot in self.slots) + self.leaving

    @cached_property
    def spare(self) -> int:
        """GPUs that nobody has; below zero where more are spoken for than there are, and somebody will have to wait."""
        return self.gpus - self.training - self.inference - self.others

    @property
    def training(self) -> int:
        """GPUs that training has, or is about to take."""
        return self.claimed + sum(self.ending.values())

    @cached_property
    def preemptible(self) -> tuple[LiveClaim, ...]:
        """Claims that give way to a higher priority, or do already. Asked for each job that waits."""
        return tuple(live for live in self.claims if live.job.spec.scheduling.interruption.policy is not GiveWay.NEVER)

    @property
    def soon(self) -> int:
        """The same once those that leave are gone."""
        return self.spare + self.leaving

    @property
    def is_crowded(self) -> bool:
        """Whether somebody waits here already for a GPU that another one has: then nobody is disturbed for a third."""
        return self.soon < 0

    @property
    def free(self) -> int:
        """GPUs that nobody has."""
        return max(0, self.spare)


@dataclass(frozen=True)
class Stock:
    """A pool's GPUs."""

    pool: GPUPool
    engines: tuple[InferenceEngine, ...]
    """The pool's, in the order in which they get GPUs."""
    nodes: Mapping[str, NodeStock]
    waiting_slots: tuple[SlotRef, ...]
    """Slots that should exist and find no GPU."""
    may_lose: Mapping[str, int] = field(default_factory=dict)
    """Replicas that serve and that disruption budgets let go, by the uid of the engine."""
    going: frozenset[str] = frozenset()
    """Attempts that give way to somebody already, by uid, on whichever of their nodes that one comes."""
    refused_slots: Mapping[SlotRef, Obstacle] = field(default_factory=dict)
    """Slots that should exist and that the pool does not give to their namespace, and why."""
    held: Mapping[str, Held] = field(default_factory=dict)
    """What each namespace has of the pool."""
    lacking: int = 0
    """GPUs of replicas that engines should have and that have no place; those that are lent come back to theirs."""

    def with_node(self, node: NodeStock) -> "Stock":
        """The same stock with one node changed."""
        return replace(self, nodes={**self.nodes, node.name: node})

    def after(self, world: World, claim: Claim) -> "Stock":
        """The stock once a claim is made: later jobs see its GPUs as taken and its slots as lent.

        Slots that come back from preempted claims are their engines' again, and not free. What else these leave is
        nobody's until they are gone: they stay if the one that comes is deleted before.
        """
        stopped: Counter[str] = Counter()
        stock = self
        for place in claim.places:
            node = stock.nodes[place.node]
            gone = {ref.uid for ref in place.preempted}
            preempted = [live for live in node.claims if live.stage_job.uid in gone]
            theirs = [here for live in preempted if (here := live.claim.on(place.node))]
            returned = {slot for here in theirs for slot in here.borrowed} - {*place.borrowed}
            lent = [slot for slot in node.slots if slot.slot in place.borrowed]
            freed = sum(taken_by(world, live.claim, place.node) for live in preempted) - gpus_of_slots(world, returned)
            stopped.update(slot.engine.metadata.uid for slot in lent if slot.serving)
            stock = stock.with_node(
                replace(
                    node,
                    claims=tuple(live for live in node.claims if live not in preempted),
                    claimed=node.claimed + max(0, taken_by(world, claim, place.node) - freed),
                    slots=tuple(
                        _with_guest(slot, place, claim) for slot in node.slots if slot.slot not in place.borrowed
                    ),
                )
            )
        may_lose = {uid: left - stopped[uid] for uid, left in stock.may_lose.items()} if stopped else stock.may_lose
        return replace(stock, may_lose=may_lose, going=stock.going | {*claim.preempted})

    @cached_property
    def gpus(self) -> int:
        """All that its nodes offer."""
        return sum(node.gpus for node in self.nodes.values())

    @cached_property
    def free(self) -> int:
        """GPUs that nobody has."""
        return sum(node.free for node in self.nodes.values())

    @cached_property
    def claims(self) -> list[LiveClaim]:
        """The claims on all nodes; one with pods on several once."""
        found = {live.stage_job.uid: live for node in self.nodes.values() for live in node.claims}
        return list(found.values())

    @cached_property
    def staying(self) -> list[LiveClaim]:
        """Those of them that give way to nobody yet."""
        return [live for live in self.claims if live.stage_job.uid not in self.going]

    @cached_property
    def placed(self) -> Mapping[SlotRef, PlacedSlot]:
        """Every slot that has a place."""
        return {slot.slot: slot for node in self.nodes.values() for slot in node.slots}

    @cached_property
    def slots_of(self) -> Mapping[str, tuple[PlacedSlot, ...]]:
        """These slots by the uid of their engine."""
        found: dict[str, list[PlacedSlot]] = {}
        for slot in self.placed.values():
            found.setdefault(slot.engine.metadata.uid, []).append(slot)
        return {uid: tuple(slots) for uid, slots in found.items()}


def _with_guest(slot: PlacedSlot, place: NodeAllocation, claim: Claim) -> PlacedSlot:
    """A slot once a claim is made: with less memory left if that is its guest."""
    return (
        replace(slot, shared=slot.shared + claim.share.percent) if claim.share and slot.slot == place.beside else slot
    )


def share_of(pool: GPUPool, job: FineTuneJob) -> Share | None:
    """What of a GPU a job uses; None when its GPUs are its own."""
    if job.spec.scheduling.policy is not Policy.SHARED:
        return None
    return Share(mode=pool.spec.sharing.mode, percent=job.spec.scheduling.share_percent)


def is_guest(pool: GPUPool, job: FineTuneJob) -> bool:
    """Whether a job is to train beside a slot."""
    return pool.spec.by_dra and job.spec.scheduling.policy is Policy.SHARED
