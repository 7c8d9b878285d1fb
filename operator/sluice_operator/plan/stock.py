"""Who has which GPU, as values? A pool's nodes, each with its claims, its slots and what is free."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import NamedTuple

from sluice_api.claim import Claim, NodeAllocation, Share, SlotRef
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.scheduling import GiveWay, Policy
from sluice_operator.facts.claims import LiveClaim, ends_at, gpus_of_slots, taken_by
from sluice_operator.observe.fence import each
from sluice_operator.observe.views import Key, NodeView
from sluice_operator.observe.world import World
from sluice_operator.plan.obstacle import Obstacle

UNBOUNDED = 1_000_000
"""More GPUs and more replicas than anybody has: a bound that binds nobody."""


class Held(NamedTuple):
    """GPUs of a pool that one namespace has."""

    gpus: int = 0
    """GPUs of its jobs."""
    borrowed: int = 0
    """Those of `gpus` that are borrowed from engines."""
    serving: int = 0
    """GPUs of its engines' replicas, lent ones included."""
    own: int = 0
    """GPUs that its engines lend to its own jobs: they are both in `gpus` and in `serving`."""

    @property
    def total(self) -> int:
        """GPUs of its jobs and replicas together, each counted once."""
        return self.gpus + self.serving - self.own

    def plus(self, gpus: int = 0, borrowed: int = 0, serving: int = 0) -> "Held":
        """A copy with some GPUs added."""
        return Held(self.gpus + gpus, self.borrowed + borrowed, self.serving + serving, self.own)

    def with_claim(self, world: World, claim: Claim, namespace: str) -> "Held":
        """A copy with one more claim added, by a job of the namespace."""
        borrowed = sum(borrowed_on(world, claim, place.node) for place in claim.places)
        mine = sum(_of_own(world, claim, place, namespace) for place in claim.places)
        return self.plus(claim.all_gpus, borrowed)._replace(own=self.own + mine)


NOTHING = Held()


def borrowed_on(world: World, claim: Claim, node: str) -> int:
    """GPUs of a node that a claim borrows and uses. It only keeps the rest of a larger slot, which does not count."""
    place = claim.on(node)
    return min(claim.gpus_on(node), gpus_of_slots(world, place.borrowed)) if place else 0


def _of_own(world: World, claim: Claim, place: NodeAllocation, namespace: str) -> int:
    """GPUs of one node that a claim borrows from engines of the job's own namespace."""
    slots = [slot for slot in place.borrowed if slot.namespace == namespace]
    return min(claim.gpus_on(place.node), gpus_of_slots(world, slots))


@dataclass(frozen=True, slots=True)
class PlacedSlot:
    """An engine's slot that has a place on a node: its pod is bound there, or there is room for it."""

    slot: SlotRef
    engine: InferenceEngine
    gpus: int
    created: datetime
    """When its pod was made; without a pod, when its engine was."""
    pod: Key | None = None
    serving: bool = False
    in_flight: int = 0
    """Requests in flight by its last report; 0 without one."""
    shared: int = 0
    """Percent of its GPUs' memory that its guests use. A slot with guests is not lent."""
    takes_guests: bool = False
    """Whether jobs may train beside it if there is room: its vLLM stays, and takes what its spec says."""
    lendable: bool = True
    """Whether it can make room in its engine's way (ScaleDown or Sleep). Other obstacles may still forbid a loan."""
    stays: bool = True
    """Whether its engine still wants it. A slot that is being removed does not count towards the floor."""

    @property
    def is_open(self) -> bool:
        """Whether nothing about the slot itself forbids a loan."""
        return self.lendable and not self.shared


@dataclass(frozen=True)
class NodeStock:
    """One node's GPUs."""

    node: NodeView
    gpus: int
    unusable: str
    """Why it takes no new training pod; empty if it does."""
    claims: tuple[LiveClaim, ...] = ()
    claimed: int = 0
    """GPUs that claims take. A claim that gives way does not count: its preemptor's does."""
    slots: tuple[PlacedSlot, ...] = ()
    leaving: int = 0
    """GPUs of lent slots that have started here, and not on the node that they lent. They stop for the borrower."""
    ending: Mapping[str, int] = field(default_factory=dict)
    """GPUs of training pods that outlive their claim, because the job was deleted, suspended or orphaned. By
    namespace."""
    others: int = 0
    """GPUs of all other pods: neither of training nor of a slot."""

    @cached_property
    def name(self) -> str:
        """The node's name."""
        return self.node.key.name

    @cached_property
    def inference(self) -> int:
        """GPUs that slots have or are about to take."""
        return sum(slot.gpus for slot in self.slots) + self.leaving

    @cached_property
    def spare(self) -> int:
        """GPUs that are neither held nor spoken for; below zero if more are spoken for than the node offers."""
        return self.gpus - self.training - self.inference - self.others

    @property
    def training(self) -> int:
        """GPUs that training has or is about to take."""
        return self.claimed + sum(self.ending.values())

    @cached_property
    def preemptible(self) -> tuple[LiveClaim, ...]:
        """Claims that agreed to give way to a higher priority, those that already do included."""
        return tuple(live for live in self.claims if live.job.spec.scheduling.interruption.policy is not GiveWay.NEVER)

    @property
    def soon(self) -> int:
        """The node's `spare` GPUs once the slots that leave are gone."""
        return self.spare + self.leaving

    @property
    def is_crowded(self) -> bool:
        """Whether more is spoken for than the node offers. Then nothing here is disturbed for a further job."""
        return self.soon < 0

    @property
    def free(self) -> int:
        """The node's `spare` GPUs, and at least 0."""
        return max(0, self.spare)


@dataclass(frozen=True)
class Stock:
    """A pool's GPUs."""

    pool: GPUPool
    engines: tuple[InferenceEngine, ...]
    """The pool's engines, in the order in which they get GPUs."""
    nodes: Mapping[str, NodeStock]
    homes: Mapping[str, Collection[str]]
    """By an engine's uid, the nodes on which its slots have a place, or had one before claims were made."""
    waiting_slots: tuple[SlotRef, ...]
    """Slots that should exist and find no GPU."""
    load: Mapping[str, float] = field(default_factory=dict)
    """Requests in flight of each engine that reclaims by load, by its uid: those of slots that it lends next too."""
    may_lose: Mapping[str, int] = field(default_factory=dict)
    """How many serving replicas disruption budgets let go, by the engine's uid."""
    going: frozenset[str] = frozenset()
    """Uids of attempts that already give way to a preemptor, on any of their nodes."""
    refused_slots: Mapping[SlotRef, Obstacle] = field(default_factory=dict)
    """Slots that should exist and that the pool refuses to their namespace, and why."""
    held: Mapping[str, Held] = field(default_factory=dict)
    """What each namespace has of the pool."""
    lacking: int = 0
    """GPUs of replicas that engines should have and that have no place. A lent slot has one, to which it returns."""

    def with_node(self, node: NodeStock) -> "Stock":
        """The stock with one node changed."""
        return replace(self, nodes={**self.nodes, node.name: node})

    def after(self, world: World, claim: Claim) -> "Stock":
        """The stock once a claim is made. Later jobs see the claim's GPUs as taken and its slots as lent.

        Slots that return from preempted claims belong to their engines again, and are not free. The other GPUs of a
        preempted claim are not free before its pods are gone: it keeps them if the preemptor is deleted first.
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
        """GPUs that the pool's nodes offer."""
        return sum(node.gpus for node in self.nodes.values())

    @cached_property
    def free(self) -> int:
        """The free GPUs of all its nodes."""
        return sum(node.free for node in self.nodes.values())

    @cached_property
    def claims(self) -> list[LiveClaim]:
        """The claims on all nodes. A claim on several nodes is listed once."""
        found = {live.stage_job.uid: live for node in self.nodes.values() for live in node.claims}
        return list(found.values())

    @cached_property
    def returns(self) -> list[tuple[datetime, int]]:
        """When claims are expected to end, each with its GPUs, the first first. Guests have none of their own."""
        holders = (live for live in self.claims if not live.claim.host)
        ends = each(holders, lambda live: live.key, lambda live: (ends_at(live), live.claim.all_gpus))
        return sorted((end, gpus) for end, gpus in ends if end)

    @cached_property
    def staying(self) -> list[LiveClaim]:
        """The claims that do not give way to a preemptor."""
        return [live for live in self.claims if live.stage_job.uid not in self.going]

    @cached_property
    def placed(self) -> Mapping[SlotRef, PlacedSlot]:
        """Every slot that has a place on a node."""
        return {slot.slot: slot for node in self.nodes.values() for slot in node.slots}

    def slots_of(self, engine: InferenceEngine) -> Sequence[PlacedSlot]:
        """The slots of an engine that have a place."""
        uid = engine.metadata.uid
        if uid not in self._slots_of:
            here = (slot for name in self.homes.get(uid, ()) for slot in self.nodes[name].slots)
            found = {slot.slot: slot for slot in here if slot.engine.metadata.uid == uid}
            self._slots_of[uid] = tuple(found.values())
        return self._slots_of[uid]

    @cached_property
    def _slots_of(self) -> dict[str, Sequence[PlacedSlot]]:
        """What `slots_of` has found, by the engine's uid. A claim changes few engines' slots, so not all are asked."""
        return {}


def _with_guest(slot: PlacedSlot, place: NodeAllocation, claim: Claim) -> PlacedSlot:
    """A slot once a claim is made. If the claim is its guest, it has less memory left."""
    return (
        replace(slot, shared=slot.shared + claim.share.percent) if claim.share and slot.slot == place.beside else slot
    )


def share_of(pool: GPUPool, job: FineTuneJob) -> Share | None:
    """The part of a GPU that a job asks for; None if its policy is not Shared."""
    if job.spec.scheduling.policy is not Policy.SHARED:
        return None
    return Share(mode=pool.spec.sharing.mode, percent=job.spec.scheduling.share_percent)


def is_guest(pool: GPUPool, job: FineTuneJob) -> bool:
    """Whether a job would train beside a slot in this pool: its policy is Shared, and DRA serves the GPUs."""
    return pool.spec.by_dra and job.spec.scheduling.policy is Policy.SHARED
