"""What must hold of each claim at the moment at which it is made. state_machine.py asks it of every decision."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from sluice_api.claim import NodeAllocation
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.scheduling import GiveWay, Policy
from sluice_api.stages import Stage
from sluice_operator.facts.claims import LiveClaim, gpus_of_slots
from sluice_operator.facts.live_claims import lent_by_index, live_claims, preemptors
from sluice_operator.facts.outcomes import recorded
from sluice_operator.facts.overlap import borrowers, overlapped_by
from sluice_operator.facts.retries import after
from sluice_operator.facts.slots import floor_of, pod_of, serves, wanted
from sluice_operator.observe.world import World, engine_key, job_key, key_of
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.pool.allocate import Allocation
from sluice_operator.plan.pool.lending import lending_obstacle
from sluice_operator.plan.pool.queue import line_up, place_in_queue
from sluice_operator.plan.readiness import asks
from sluice_operator.plan.stock import Stock


@dataclass(frozen=True)
class Made:
    """A claim that was just made."""

    world: World
    """With the claim."""
    pool: GPUPool
    now: datetime
    live: LiveClaim
    decided: Allocation
    before: Stock
    """What there was when it was decided."""

    def keeps_its_promises(self, quota: int | None) -> None:
        """Nobody loses more than they agreed to, nobody for nothing, and nobody who stands in front."""
        self._floors_hold()
        self._nobody_was_overtaken()
        self._quota_holds(quota)
        if asks(self.live.job, self.now):
            assert (*self.live.claim.borrowed, *self.live.claim.preempted) == (), "it asks for nodes first"
        self._free_gpus_come_first()
        self._no_victim_could_be_spared()
        self._nobody_who_gives_way_could_be_spared()
        self._only_who_agreed_gives_way()
        assert overlapped_by(self.world, self.live) is None, "a claim is born overlapped"

    def _floors_hold(self) -> None:
        """Of the replicas that an engine should have; and of those that serve, if one of them stops."""
        lent = borrowers(self.world, live_claims(self.world))
        for engine in self.world.engines.values():
            mine = {slot.index for slot in self.live.claim.borrowed if slot.engine == engine.metadata.name}
            gone = set(lent_by_index(lent, engine))
            left = set(wanted(self.world, engine, gone)) - gone
            serving = self._serving(engine, left)
            assert not mine or len(left) >= floor_of(engine), f"{engine.metadata.name} keeps {left}"
            stops = self._serving(engine, mine)
            assert not stops or len(serving) >= floor_of(engine), f"{engine.metadata.name} serves with {serving}"

    def _serving(self, engine: InferenceEngine, indices: set[int]) -> set[int]:
        return {index for index in indices if serves(pod_of(self.world, engine, index))}

    def _nobody_was_overtaken(self) -> None:
        """A claim that is made while a job in front waits takes only what can never be that job's."""
        stock, claim = take_stock(self.world, self.pool), self.live.claim
        for job in self._ahead():
            name = job.metadata.name
            assert not claim.preempted, f"somebody gave way past {name}"
            for there in claim.places:
                could_be_theirs = stock.nodes[there.node].gpus >= job.spec.resources.gpus
                paid = gpus_of_slots(self.world, there.borrowed) >= claim.gpus_on(there.node)
                assert paid or not could_be_theirs, f"free GPUs went past {name}"
            for slot in claim.borrowed:
                engine = self.world.engines[engine_key(slot.namespace, slot.engine)]
                refused = lending_obstacle(self.world, stock, engine, job, self.now)
                assert refused or job.spec.scheduling.policy is Policy.QUEUE, f"{slot} went past {name}"

    def _ahead(self) -> Iterator[FineTuneJob]:
        """Who waits in front of it."""
        place = place_in_queue(self.pool, self.live.job, self.now)
        for job in line_up(self.world, self.pool, self.now).pending:
            if key_of(job) in self.decided.waits and place_in_queue(self.pool, job, self.now) <= place:
                yield job

    @property
    def _is_first(self) -> bool:
        """Whether all that was spare was its own: no claim was made before it, and nothing kept for who waits."""
        return next(iter(self.decided.claims)) == key_of(self.live.job) and not any(self._ahead())

    def _quota_holds(self, quota: int | None) -> None:
        claims = live_claims(self.world)
        leave = preemptors(self.world, claims)
        held = sum(other.claim.all_gpus for other in claims if other.stage_job.uid not in leave)
        assert quota is None or held <= quota, f"its namespace has {held} of {quota}"

    def _free_gpus_come_first(self) -> None:
        """Nobody is disturbed where one pod would do with what nobody has. A node that failed it is avoided."""
        job, claim = self.live.job, self.live.claim
        failed = {outcome.node for outcome in recorded(job).of(Stage.TRAIN) if not after(outcome.reason).ran}
        usable = (node for node in self.before.nodes.values() if not node.unusable and node.name not in failed)
        free = [node.name for node in usable if node.free >= job.spec.resources.gpus]
        if self._is_first and job.spec.resources.nodes == 1:
            assert not free or not (claim.borrowed or claim.preempted), f"GPUs are free on {free}"

    def _no_victim_could_be_spared(self) -> None:
        """Without the smallest of a node's it would not fit there."""
        for there in self.live.claim.places:
            slots = [gpus_of_slots(self.world, [slot]) for slot in there.borrowed]
            assert not slots or sum(slots) - min(slots) < self._lacking(there), "a victim could be spared"

    def _nobody_who_gives_way_could_be_spared(self) -> None:
        """Without them it would not fit on one of their nodes: a group that ends for one of them leaves all."""
        places = self.live.claim.places
        for uid in {ref.uid for there in places for ref in there.preempted}:
            without = [
                (there, sum(ref.gpus for ref in there.preempted if ref.uid != uid))
                for there in places
                if any(ref.uid == uid for ref in there.preempted)
            ]
            assert any(left < self._lacking(there) for there, left in without), "somebody gave way who could be spared"

    def _lacking(self, there: NodeAllocation) -> int:
        """GPUs of a node that the claim takes beyond those that are spare.

        Below zero, where more is spoken for than there is, what is spare counts for each claim.
        """
        soon = self.before.nodes[there.node].soon
        return self.live.claim.gpus_on(there.node) - (soon if self._is_first else min(0, soon))

    def _only_who_agreed_gives_way(self) -> None:
        mine = self.live.job.spec.scheduling.priority
        for ref in (ref for there in self.live.claim.places for ref in there.preempted):
            theirs = self.world.jobs[job_key(ref.namespace, ref.job)].spec.scheduling
            assert theirs.priority < mine, f"{ref.job} gave way to a priority that is not above its own"
            assert theirs.interruption.policy is GiveWay.TO_HIGHER_PRIORITY, f"{ref.job} gave way and never does"
