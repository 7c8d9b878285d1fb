"""What holds after every step, whatever happens in whatever order."""

import os
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as Search
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dev.simulate.cluster import Cluster
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool
from sluice_api.scheduling import GiveWay, Policy
from sluice_operator.observe.views import Key, NodeView, PodView
from sluice_operator.observe.world import engine_key, job_key, key_of
from sluice_operator.plan.allocation import allocate, pending, place_in_queue
from sluice_operator.plan.claims import LiveClaim, Phase, borrowers, heirs, live_claims, overlapped_by
from sluice_operator.plan.engine import plan_engine
from sluice_operator.plan.inventory import lent_indices, take_stock
from sluice_operator.plan.lending import lending_refusal
from sluice_operator.plan.pools import find_pool
from sluice_operator.plan.proof import phase_of
from sluice_operator.plan.slots import floor_of, wanted
from sluice_operator.plan.waiting import Wait
from tests.unit.plan.worlds import GPU, YIELDS, describe

ENDS = [(0, "Done"), (70, "TrainerFailed"), (65, "OutOfMemory"), (75, "Requeued")]
"""How training may end: exit code and reason."""

TERMS = st.tuples(st.booleans(), st.integers(0, 2), st.booleans(), st.sampled_from([86_400, 86_400, 60]))
"""Whether a job borrows, its priority, whether it gives way, and how long it may train."""

SHAPES = st.sampled_from([(1, 1), (1, 1), (1, 1), (2, 1), (1, 2), (1, 2), (1, 3), (2, 2)])
"""GPUs of each pod, and pods."""

PATIENCE = 16
"""Rounds of 20 s without any change after which nothing more is expected: longer than any pause."""


class Lending(RuleBasedStateMachine):
    """Jobs come, go and fail, engines are resized, nodes vanish, and every component may be late."""

    policies = ("ScaleDown", "ScaleDown", "Never")
    """Of which the engines have one."""

    @initialize(
        gpus=st.lists(st.integers(1, 2), min_size=1, max_size=2),
        engines=st.integers(0, 2),
        jobs=st.integers(2, 6),
        data=st.data(),
    )
    def start(self, gpus: list[int], engines: int, jobs: int, data: st.DataObject) -> None:
        self.cluster = Cluster()
        self.jobs = 0
        self.over: dict[str, datetime] = {}
        for count in gpus:
            self.cluster.town.node(count)
        if "Sleep" in self.policies:
            self.cluster.town.dra_pool()
            engines = max(engines, 1)
        for number in range(engines):
            terms = {
                "policy": data.draw(st.sampled_from(self.policies)),
                "minReplicas": data.draw(st.integers(0, 2)),
                "coolDownSeconds": data.draw(st.sampled_from([60, 0])),
                "reclaim": data.draw(st.sampled_from(["Never", "OnDemand"])),
            }
            self.cluster.town.engine(f"e{number}", data.draw(st.integers(0, 3)), preemption=terms)
        if "Sleep" in self.policies:  # only what serves can go to sleep
            for _ in range(4):
                self.cluster.round()
        for _ in range(jobs):
            self.submit(data.draw(SHAPES), *data.draw(TERMS))

    @rule(shape=SHAPES, terms=TERMS)
    def submits(self, shape: tuple[int, int], terms: tuple[bool, int, bool, int]) -> None:
        self.submit(shape, *terms)

    def submit(self, shape: tuple[int, int], preempt: bool, priority: int, yields: bool, seconds: int) -> None:
        self.jobs += 1
        scheduling: dict[str, Any] = {"policy": "Preempt" if preempt else "Queue", "priority": priority}
        if yields:
            scheduling["interruption"] = YIELDS
        gpus, nodes = shape
        changes: dict[str, Any] = {"scheduling": scheduling, "activeDeadlineSeconds": seconds}
        self.cluster.town.job(f"j{self.jobs}", gpus, resources={"nodes": nodes}, **changes)

    @rule()
    def reconcile_pool(self) -> None:
        """No claim takes an engine below its floor, and none of its victims could be spared."""
        before = {live.stage_job.uid for live in live_claims(self.cluster.world)}
        waits = allocate(self.cluster.world, self._pool(), self.cluster.now).waits
        stock = take_stock(self.cluster.world, self._pool())
        self.cluster.reconcile_pool()
        claims = live_claims(self.cluster.world)
        for live in claims:
            if live.stage_job.uid in before:
                continue
            for engine in self.cluster.world.engines.values():
                lent = lent_indices(borrowers(self.cluster.world, claims), engine)
                if any(slot.engine == engine.metadata.name for slot in live.claim.borrowed):
                    left = set(wanted(self.cluster.world, engine, lent)) - lent
                    assert len(left) >= floor_of(engine), f"{engine.metadata.name} keeps {left}"
            self._nobody_was_overtaken(live, waits)
            for there in live.claim.places:
                gpus = live.claim.gpus_on(there.node)
                too_few = max(0, -stock.nodes[there.node].soon)  # a node of which more is spoken for than there is
                assert len(there.borrowed) <= gpus + too_few, "a victim could be spared"
                assert len(there.displaced) <= gpus, "somebody gave way who could be spared"
            for ref in (ref for there in live.claim.places for ref in there.displaced):
                theirs = self.cluster.world.jobs[job_key(ref.namespace, ref.job)].spec.scheduling
                assert theirs.priority < live.job.spec.scheduling.priority
                assert theirs.interruption.policy is GiveWay.TO_HIGHER_PRIORITY
            assert overlapped_by(self.cluster.world, live) is None, "a claim is born overlapped"

    def _nobody_was_overtaken(self, live: LiveClaim, waits: Mapping[Key, Wait]) -> None:
        """A claim that is made while a job in front waits takes only what can never be that job's."""
        queue = [job for job in pending(self.cluster.world, self._pool(), self.cluster.now) if key_of(job) in waits]
        place = place_in_queue(self._pool(), live.job, self.cluster.now)
        stock = take_stock(self.cluster.world, self._pool())
        for job in queue:
            if place_in_queue(self._pool(), job, self.cluster.now) > place:
                continue
            assert len(live.claim.borrowed) >= live.claim.all_gpus, f"free GPUs went past {job.metadata.name}"
            assert not live.claim.displaced, f"somebody gave way past {job.metadata.name}"
            for slot in live.claim.borrowed:
                engine = self.cluster.world.engines[engine_key(slot.namespace, slot.engine)]
                refused = lending_refusal(self.cluster.world, stock, engine, job, self.cluster.now)
                assert refused or job.spec.scheduling.policy is Policy.QUEUE, f"{slot} went past {job.metadata.name}"

    def _pool(self) -> GPUPool:
        pool = find_pool(self.cluster.world, "default")
        assert pool is not None
        return pool

    @rule(data=st.data())
    def reconcile_job(self, data: st.DataObject) -> None:
        for job in self._some(data, list(self.cluster.world.jobs.values())):
            self.cluster.reconcile_job(job)

    @rule(data=st.data())
    def reconcile_engine(self, data: st.DataObject) -> None:
        for engine in self._some(data, list(self.cluster.world.engines.values())):
            self.cluster.reconcile_engine(engine)

    @rule()
    def kubernetes(self) -> None:
        self.cluster.controllers()
        self.cluster.scheduler()
        self.cluster.kubelet()

    @rule(rounds=st.integers(1, 4))
    def nothing_happens(self, rounds: int) -> None:
        """Everybody does their part, so that claims get as far as training."""
        for _ in range(rounds):
            self.cluster.round()
            self.who_is_over_stays_so()

    @rule()
    def controllers(self) -> None:
        """Pods are told to end, and take their time."""
        self.cluster.controllers()

    @rule()
    def agents(self) -> None:
        """Faster than any pod that is to end."""
        self.cluster.agents()

    @rule()
    def scheduler(self) -> None:
        self.cluster.scheduler()

    @rule(seconds=st.sampled_from([1, 5, 70]))
    def time_passes(self, seconds: int) -> None:
        self.cluster.pass_time(seconds)

    @rule(
        data=st.data(), end=st.sampled_from([(0, "Done"), (70, "TrainerFailed"), (65, "OutOfMemory"), (75, "Requeued")])
    )
    def training_ends(self, data: st.DataObject, end: tuple[int, str]) -> None:
        for pod in self._some(data, self._trainers()):
            self.cluster.end_training(pod, *end)

    @rule(data=st.data(), on=st.booleans())
    def suspend(self, data: st.DataObject, on: bool) -> None:
        for job in self._some(data, list(self.cluster.world.jobs.values())):
            self.cluster.respec(job, suspend=on)

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        for job in self._some(data, list(self.cluster.world.jobs.values())):
            self.cluster.delete_job(job)

    @rule(data=st.data(), for_good=st.booleans())
    def stop_while_it_trains(self, data: st.DataObject, for_good: bool) -> None:
        """The claim is over at once and everybody knows, its pod only later."""
        training = [
            live.job for live in live_claims(self.cluster.world) if phase_of(self.cluster.world, live) > Phase.DRAINING
        ]
        for job in self._some(data, training):
            if for_good:
                self.cluster.delete_job(job)
            else:
                self.cluster.respec(job, suspend=True)
                self.cluster.reconcile_job(self.cluster.world.jobs[key_of(job)])
            self.cluster.controllers()
            for engine in list(self.cluster.world.engines.values()):
                self.cluster.reconcile_engine(engine)
            self.cluster.agents()

    @rule(data=st.data(), priority=st.integers(0, 2))
    def change_priority(self, data: st.DataObject, priority: int) -> None:
        waiting = [job for job in self.cluster.world.jobs.values() if not job.status.allocation]
        for job in self._some(data, waiting):
            changed = job.spec.scheduling.model_copy(update={"priority": priority})
            self.cluster.respec(job, scheduling=changed)

    @rule()
    def the_leader_is_stopped(self) -> None:
        self.cluster.pause()

    @rule()
    def a_stopped_leader_wakes(self) -> None:
        self.cluster.wake()

    @rule(gpus=st.integers(1, 2))
    def node_comes(self, gpus: int) -> None:
        if len(self.cluster.world.nodes) < 3:
            self.cluster.town.node(gpus)

    @rule(data=st.data(), replicas=st.integers(0, 3))
    def resize(self, data: st.DataObject, replicas: int) -> None:
        for engine in self._some(data, list(self.cluster.world.engines.values())):
            self.cluster.respec(engine, replicas=replicas)

    @precondition(lambda self: len(self.cluster.world.nodes) > 1)
    @rule(data=st.data())
    def node_goes(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(sorted(self.cluster.world.nodes.values(), key=lambda n: n.key)))
        for pod in list(self.cluster.world.pods_on.get(node.key.name, {}).values()):
            self.cluster.town.store.remove(pod.key, pod.uid)
        self.cluster.town.store.remove(node.key, node.uid)

    @invariant()
    def no_gpu_is_handed_out_twice(self) -> None:
        """What claims drain or hold on a node never exceeds it."""
        for node in self._nodes():
            acting = self._acting()
            leave = heirs(self.cluster.world, acting)
            held = sum(live.claim.gpus_on(node.key.name) for live in acting if live.stage_job.uid not in leave)
            assert held <= node.allocatable[GPU], f"{held} held on {node.key.name}"

    @invariant()
    def no_slot_is_lent_twice(self) -> None:
        """Nobody is drained for a claim that gives way to another."""
        acting = self._acting()
        leave = heirs(self.cluster.world, acting) if acting else {}
        lent = Counter(slot for live in acting if live.stage_job.uid not in leave for slot in live.claim.borrowed)
        assert all(count == 1 for count in lent.values()), lent

    def _nodes(self) -> list[NodeView]:
        return list(self.cluster.world.nodes.values()) if hasattr(self, "cluster") else []

    def _acting(self) -> list[LiveClaim]:
        """Claims for which somebody is drained, or whose pod is past its gate."""
        claims = live_claims(self.cluster.world) if hasattr(self, "cluster") else []
        return [live for live in claims if phase_of(self.cluster.world, live) >= Phase.DRAINING]

    @invariant()
    def one_trainer_a_job(self) -> None:
        if hasattr(self, "cluster"):
            owners = Counter(live.job.metadata.uid for live in live_claims(self.cluster.world))
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

    def teardown(self) -> None:
        """Left alone, everything settles: every job ends or waits, and nothing is lent to anybody who is done."""
        if not hasattr(self, "cluster"):
            return
        for job in list(self.cluster.world.jobs.values()):
            self.cluster.respec(job, suspend=False)
        quiet = 0
        for _ in range(200):
            before = len(self.cluster.world.stage_jobs), len(live_claims(self.cluster.world))
            self.cluster.round()
            self.who_is_over_stays_so()
            for pod in self._trainers():
                self.cluster.end_training(pod, 0, "Done")
            self.cluster.pass_time(20)
            same = before == (len(self.cluster.world.stage_jobs), len(live_claims(self.cluster.world)))
            quiet = quiet + 1 if same and not before[1] else 0
            if quiet > PATIENCE:
                break
        assert not live_claims(self.cluster.world), "a claim outlived its job"
        for engine in self.cluster.world.engines.values():
            assert plan_engine(self.cluster.world, engine, self.cluster.now).status.lent == 0
        stuck = [job.metadata.name for job in self._waiting() if not self._hopeless(job)]
        why = describe(allocate(self.cluster.world, self._pool(), self.cluster.now))
        assert not stuck, f"something fits and nothing runs, but {stuck} wait: {why}"

    def _waiting(self) -> list[FineTuneJob]:
        return [job for job in self.cluster.world.jobs.values() if job.status.finished_at is None]

    def _hopeless(self, job: FineTuneJob) -> bool:
        """Whether engines' own needs, or the size of the nodes, leave nothing for a job, or for one before it."""
        nodes = self.cluster.world.nodes.values()
        return self.cluster.world.engines != {} or any(
            other.spec.resources.nodes > sum(node.allocatable[GPU] // other.spec.resources.gpus for node in nodes)
            for other in self._waiting()
        )

    def _trainers(self) -> list[PodView]:
        pods = self.cluster.world.pods.values()
        return [p for p in pods if p.labels.get("sluice.dev/stage") == "Train" and p.node and not p.ended]

    @staticmethod
    def _some(data: st.DataObject, things: list[Any]) -> list[Any]:
        return [data.draw(st.sampled_from(things))] if things else []


STEPS = 60
FEW, MANY = 30, int(os.environ.get("SLUICE_SOAK_OPERATIONS", "10000")) // STEPS
"""Stories of one run: before each commit; and with all tests, or as many as `make soak` says."""


def stories(examples: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Search.explicit, Search.reuse, Search.generate),  # shrinking a long story takes longer than reading it
    )


class LendingForLong(Lending):
    """The same, many times."""


class LendingAsleep(Lending):
    """The same with engines that keep their pods while they lend."""

    policies = ("Sleep", "Sleep", "ScaleDown")


class LendingAsleepForLong(LendingAsleep):
    """The same, many times."""


Lending.TestCase.settings = LendingAsleep.TestCase.settings = stories(FEW)
LendingForLong.TestCase.settings = LendingAsleepForLong.TestCase.settings = stories(MANY)
TestLending = Lending.TestCase
TestLendingAsleep = LendingAsleep.TestCase
TestLendingAsleepForLong = pytest.mark.slow(LendingAsleepForLong.TestCase)
TestLendingForLong = pytest.mark.slow(LendingForLong.TestCase)
