"""What holds after every step of a story, whatever happens in whatever order. state_machine.py plays them."""

from collections import Counter
from datetime import datetime

from hypothesis.stateful import RuleBasedStateMachine, invariant

from dev.simulate.cluster import Cluster
from sluice_api.reasons import Reason
from sluice_operator.facts.claims import LiveClaim, Phase, taken_by, trainer_pods
from sluice_operator.facts.live_claims import lent_by_index, live_claims, preemptors
from sluice_operator.facts.overlap import borrowers
from sluice_operator.facts.slots import wanted
from sluice_operator.observe.views import NodeView, PodView
from sluice_operator.plan.job.claim_steps import interruption
from sluice_operator.plan.preflight import phase_of
from tests.unit.plan.worlds import GPU, planned_status


class Invariants(RuleBasedStateMachine):
    """A cluster of which this is true."""

    cluster: Cluster
    over: dict[str, datetime]
    """When each job was over, by uid."""

    def nobody_sleeps_through_its_turn(self) -> None:
        """When all that was due is done, nobody would do anything if it was asked.

        Whom a change wakes, and who looks again when, is the operator's own: its routing, its queue, its timers.
        """
        sleeper = self.cluster.sleeper()
        assert not sleeper, f"it slept through its turn: {sleeper}"

    @invariant()
    def each_slot_is_lent_once(self) -> None:
        """Nobody is drained for a claim that gives way to another. Asked before GPUs are counted, which would see most
        of it too. Who comes in another's place may be bound to a GPU that came free meanwhile: then that one goes on,
        and until it ends what it borrows is lent to it alone."""
        acting = self._acting()
        leave = preemptors(self.cluster.world, acting) if acting else {}
        staying = [live for live in acting if live.stage_job.uid not in leave]
        theirs = {live.stage_job.uid: {*live.claim.borrowed} for live in staying}
        lent = Counter(
            slot
            for live in staying
            for slot in {*live.claim.borrowed}.difference(*(theirs.get(uid, ()) for uid in live.claim.preempted))
        )
        assert all(count == 1 for count in lent.values()), lent

    @invariant()
    def no_gpu_is_handed_out_twice(self) -> None:
        """What claims drain or hold on a node never exceeds it."""
        for node in self._nodes():
            acting = self._acting()
            leave = preemptors(self.cluster.world, acting)
            staying = [live for live in acting if live.stage_job.uid not in leave and not self._is_preempted(live)]
            held = sum(taken_by(self.cluster.world, live.claim, node.key.name) for live in staying)
            held -= sum(self._left_to_others(live, acting, node) for live in staying)
            assert held <= node.allocatable[GPU], f"{held} held on {node.key.name}"

    def _is_preempted(self, live: LiveClaim) -> bool:
        """Whether it is told so as soon as it is looked at: whoever comes in its place was faster."""
        found = interruption(self.cluster.world, live)
        return found is not None and found.reason is Reason.PREEMPTED

    @invariant()
    def nobody_stops_for_who_found_a_free_gpu(self) -> None:
        """But for who waits for its node, or is there by what somebody leaves of a larger replica."""
        claims = live_claims(self.cluster.world) if hasattr(self, "cluster") else []
        for live in filter(self._is_preempted, claims):
            world = self.cluster.world
            coming = [phase_of(world, other) for other in claims if live.stage_job.uid in other.claim.preempted]
            here = [(other.claim, node) for other in claims for node in live.claim.nodes]
            left = any(taken_by(world, claim, node) > claim.gpus_on(node) for claim, node in here)
            assert left or Phase.BINDING in coming, f"{live.name} stops for nothing"

    def _left_to_others(self, live: LiveClaim, acting: list[LiveClaim], node: NodeView) -> int:
        """GPUs of pods that have ended, of a group that another job displaces but that ends by itself: the first pods'
        may be the other's before the last one has ended. And of an attempt that has failed, before the next one comes:
        who waits for another GPU of that node may be faster, and the next attempt gives way."""
        if not (live.stage_job.finished or any(live.stage_job.uid in other.claim.preempted for other in acting)):
            return 0
        pods = trainer_pods(self.cluster.world, live.stage_job)
        return sum(pod.ended and pod.node == node.key.name for pod in pods) * live.job.spec.resources.gpus

    def _nodes(self) -> list[NodeView]:
        return list(self.cluster.world.nodes.values()) if hasattr(self, "cluster") else []

    def _acting(self) -> list[LiveClaim]:
        """Claims for which somebody is drained, or whose pod is past its gate."""
        claims = live_claims(self.cluster.world) if hasattr(self, "cluster") else []
        return [live for live in claims if phase_of(self.cluster.world, live) >= Phase.DRAINING]

    @invariant()
    def no_loan_changes_how_many_replicas_an_engine_asks_for(self) -> None:
        """What an autoscaler wrote stands, and the loan is within it: subtracted, it would spiral down."""
        for engine in self.cluster.world.engines.values() if hasattr(self, "cluster") else ():
            lent = set(lent_by_index(borrowers(self.cluster.world, live_claims(self.cluster.world)), engine))
            asked_for = wanted(self.cluster.world, engine, lent)
            assert len(asked_for) == engine.spec.replicas, f"{engine.metadata.name} asks for {asked_for}"
            if lent:
                status = planned_status(self.cluster.world, engine, self.cluster.now)
                planned = {slot.index for slot in status.slots} - (lent - {*asked_for})
                assert len(planned) == engine.spec.replicas, f"{engine.metadata.name} would have {planned}"

    @invariant()
    def a_job_that_is_over_claims_nothing(self) -> None:
        for live in live_claims(self.cluster.world) if hasattr(self, "cluster") else ():
            over = live.job.status.finished_at and not live.stage_job.deleting
            assert not (over and live.stage_job.finished), f"{live.name} is over and claims"

    @invariant()
    def one_trainer_a_job(self) -> None:
        """What a leader that was stopped makes when it wakes disturbs nobody, and goes."""
        owners = Counter(live.job.metadata.uid for live in self._acting())
        assert all(count == 1 for count in owners.values()), owners

    @invariant()
    def who_is_over_stays_so(self) -> None:
        for job in self.cluster.world.jobs.values() if hasattr(self, "cluster") else ():
            uid = job.metadata.uid
            if job.status.finished_at:
                self.over.setdefault(uid, job.status.finished_at)
            assert job.status.finished_at == self.over.get(uid), f"{job.metadata.name} came back"

    @invariant()
    def nobody_trains_beside_a_vllm_that_is_awake(self) -> None:
        """Neither does a trainer start before what it borrows sleeps, nor does that wake while the trainer is there."""
        for trainer in self._trainers() if hasattr(self, "cluster") else ():
            awake = [pod.key.name for pod in self.cluster.lent_pods(trainer) if pod.uid in self.cluster.awake]
            assert not awake, f"{trainer.key.name} trains beside {awake}"

    def _trainers(self) -> list[PodView]:
        pods = self.cluster.world.pods.values()
        return [p for p in pods if p.labels.get("sluice.dev/stage") == "Train" and p.node and not p.ended]
