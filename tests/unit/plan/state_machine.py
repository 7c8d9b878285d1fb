"""Stories of jobs, engines and nodes, and what holds after each of their steps. test_invariants.py plays them."""

from collections.abc import Callable
from datetime import timedelta
from math import ceil
from typing import Any
from unittest.mock import patch

import hypothesis.strategies as st
from hypothesis.stateful import initialize, precondition, rule

from dev.simulate.cluster import Cluster
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.meta import JOB_LABEL
from sluice_operator.facts.claims import Phase
from sluice_operator.facts.live_claims import live_claims
from sluice_operator.facts.nodes import find_pool
from sluice_operator.facts.slots import pod_of, serves
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World, identity, job_key, key_of
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.pool.allocate import Allocation, allocate, allocate_fenced
from sluice_operator.plan.pool.reservations import alike
from sluice_operator.plan.preflight import phase_of
from sluice_operator.plan.readiness import readiness
from tests.unit.plan.claim_invariants import Made
from tests.unit.plan.invariants import Invariants
from tests.unit.plan.quiescence import Settled
from tests.unit.plan.remedies import lies
from tests.unit.plan.worlds import YIELDS, describe, planned_status

ENDS = [(0, "Done"), (70, "TrainerFailed"), (65, "OutOfMemory"), (75, "Requeued")]
"""How training may end: exit code and reason."""

TERMS = st.tuples(
    st.sampled_from([True, True, False]),
    st.integers(0, 2),
    st.booleans(),
    st.sampled_from([86_400, 86_400, 60]),
    st.sampled_from([0, 0, 0, 30, 600]),
)
"""Whether a job borrows, its priority, whether it gives way, how long it may train, how long it asks for nodes."""

SHAPES = st.sampled_from([(1, 1), (1, 1), (1, 1), (2, 1), (1, 2), (1, 2), (1, 3), (2, 2)])
"""GPUs of each pod, and pods."""

NODES = st.sampled_from([1, 1, 2, 2, 3])
"""GPUs of a node."""

DELETIONS = [Cluster.delete_job, Cluster.delete_job_that_is_kept, Cluster.orphan]

PATIENCE = timedelta(seconds=640)
"""After so long without any change nothing more is expected, but for a job whose pause is longer."""


QUIET_ROUNDS = 2
"""After so many rounds of 20 s without any change the clock goes on to the next moment at which somebody looks."""


class Watched(Cluster):
    """A cluster in which each decision of a pool is looked at."""

    quota: int | None = None

    def reconcile(self, key: Key) -> None:
        """One step for one object. claim_invariants.py says what must hold of each claim that is made."""
        pool = find_pool(self.world, key.name) if key.kind == "GPUPool" else None
        if pool is None:
            super().reconcile(key)
            return
        known = {live.stage_job.uid for live in live_claims(self.world)}
        before, now, decided, one_by_one = take_stock(self.world, pool), self.now, Allocation(), Allocation()

        def allocated(world: World, *args: Any) -> Allocation:
            nonlocal decided, one_by_one
            decided = one_by_one = allocate(world, *args)
            jobs = [world.jobs[key] for key in (*decided.waits, *decided.claims)]
            if len({alike(world, job) for job in jobs}) < len(jobs):
                none_alike = patch("sluice_operator.plan.pool.reservations.alike", lambda _world, _job: object())
                unexplained = patch("sluice_operator.plan.pool.allocate.obstructed", lambda *_: ())
                with none_alike, unexplained:
                    one_by_one = allocate(world, *args)
            return decided

        with patch("sluice_operator.reconcile.pool.allocate", allocated):
            super().reconcile(key)
        assert one_by_one.claims == decided.claims, "what was found of one job does not hold for all like it"
        for live in (live for live in live_claims(self.world) if live.stage_job.uid not in known):
            if key_of(live.job) in decided.claims:  # not a late one of a leader that has stopped
                Made(self.world, pool, now, live, decided, before).keeps_its_promises(self.quota)


class Lending(Invariants):
    """Jobs come, go and fail, engines are resized, nodes vanish, and every component may be late."""

    policies: tuple[str, ...] = ("ScaleDown", "ScaleDown", "ScaleDown", "Never")
    """Of which the engines have one."""

    @initialize(
        gpus=st.lists(NODES, min_size=1, max_size=2),
        engines=st.sampled_from([1, 1, 2, 0]),
        jobs=st.integers(2, 6),
        quota=st.sampled_from([None, None, None, 1, 2]),
        data=st.data(),
    )
    def start(self, gpus: list[int], engines: int, jobs: int, quota: int | None, data: st.DataObject) -> None:
        self.cluster = Watched()
        self.jobs = 0
        self.over = {}
        self.quota = self.cluster.quota = quota
        sleepy = "Sleep" in self.policies
        make_pool = self.cluster.builder.dra_pool if sleepy else self.cluster.builder.pool
        make_pool(quotas=[{"maxGPUs": quota}] if quota else [])
        for count in gpus:
            self.cluster.builder.node(count)
        engines = max(engines, sleepy)
        for number in range(engines):
            terms = {
                "policy": data.draw(st.sampled_from(self.policies)),
                "minReplicas": data.draw(st.sampled_from([0, 0, 1, 2])),
                "coolDownSeconds": data.draw(st.sampled_from([60, 0])),
                "reclaim": data.draw(st.sampled_from(["Never", "OnDemand"])),
            }
            sizes = {"gpus": data.draw(st.sampled_from([1, 2]))}
            self.cluster.builder.engine(f"e{number}", data.draw(st.integers(0, 3)), preemption=terms, resources=sizes)
        if sleepy or data.draw(st.booleans()):  # only what serves can go to sleep
            for _ in range(4):
                self.cluster.round()
        for _ in range(jobs):
            self.submit(data.draw(SHAPES), *data.draw(TERMS))

    @rule(shape=SHAPES, terms=TERMS)
    def submits(self, shape: tuple[int, int], terms: tuple[bool, int, bool, int, int]) -> None:
        self.submit(shape, *terms)

    @rule(shape=SHAPES, priority=st.integers(0, 2))
    def somebody_comes_to_borrow(self, shape: tuple[int, int], priority: int) -> None:
        """When replicas serve already: by single steps alone few jobs meet any (two claims of a hundred borrowed)."""
        for _ in range(4):
            self.everybody_does_their_part()
        self.submit(shape, preempt=True, priority=priority, yields=False, seconds=86_400, asks=0)
        self.cluster.work()

    def submit(
        self, shape: tuple[int, int], preempt: bool, priority: int, yields: bool, seconds: int, asks: int
    ) -> None:
        self.jobs += 1
        scheduling: dict[str, Any] = {"policy": "Preempt" if preempt else "Queue", "priority": priority}
        scheduling["interruption"] = {**YIELDS} if yields else {**YIELDS, "policy": "Never"}
        if self.jobs % 2:  # the other half gives way at once
            scheduling["interruption"] |= {"minRunSeconds": 90, "graceSeconds": 120}
        if asks:
            scheduling["scaleUpFirst"] = {"waitSeconds": asks}
        gpus, nodes = shape
        changes: dict[str, Any] = {"scheduling": scheduling, "activeDeadlineSeconds": seconds}
        self.cluster.builder.job(f"j{self.jobs}", gpus, resources={"nodes": nodes}, **changes)

    @rule()
    def reconcile_pool(self) -> None:
        """Somebody has it looked at."""
        self.cluster.reconcile_pool()

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
            self.everybody_does_their_part()

    def everybody_does_their_part(self) -> None:
        self.cluster.round()
        self.cluster.work()
        self.nobody_sleeps_through_its_turn()
        self.each_slot_is_lent_once()
        self.no_gpu_is_handed_out_twice()
        self.one_trainer_a_job()
        self.a_job_that_is_over_claims_nothing()
        self.who_is_over_stays_so()

    @rule(most=st.sampled_from([1, 2, 5, 1000]))
    def the_operator_works(self, most: int) -> None:
        """It looks at whom changes, and moments, have put into its queue; perhaps not at all of them yet."""
        if self.cluster.work(most) < most:
            self.nobody_sleeps_through_its_turn()

    @rule()
    def whoever_waits_does_what_it_is_told(self) -> None:
        """In a copy of the world: then it starts, or waits for something else."""
        for lie in lies(self.cluster.builder, self.cluster.now):
            raise AssertionError(lie)

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

    @rule(looks=st.sampled_from([1, 5]))
    def time_passes_until_somebody_looks_again(self, looks: int) -> None:
        """And nothing else happens: then nobody has anything to do a second before."""
        self.the_operator_works(1000)
        for _ in range(looks):
            moment = self.cluster.queue.next_moment()
            left = int(moment - self.cluster.now.timestamp()) if moment is not None else 0
            for seconds in (left - 1, 1) if left > 1 else ():
                self.cluster.pass_time(seconds)
                self.the_operator_works(1000)

    @rule(shape=SHAPES, data=st.data())
    def somebody_comes_after_a_return(self, shape: tuple[int, int], data: st.DataObject) -> None:
        """Its lender pauses: a moment ends that, and nothing else may happen until then."""
        for pod in self._some(data, self._trainers()):
            self.cluster.end_training(pod, 0, "Done")
        for _ in range(3):
            self.everybody_does_their_part()
        self.submit(shape, preempt=True, priority=2, yields=True, seconds=86_400, asks=0)
        self.time_passes_until_somebody_looks_again(5)

    @rule(shape=SHAPES)
    def pods_are_not_bound(self, shape: tuple[int, int]) -> None:
        """The scheduler is away for longer than a claim waits: its job avoids the node for some minutes."""
        self.submit(shape, preempt=True, priority=2, yields=False, seconds=86_400, asks=0)
        for _ in range(4):
            self.the_operator_works(1000)
            self.cluster.controllers()
            self.cluster.agents()
        self.cluster.pass_time(70)
        self.time_passes_until_somebody_looks_again(5)

    @rule(data=st.data(), end=st.sampled_from(ENDS))
    def training_ends(self, data: st.DataObject, end: tuple[int, str]) -> None:
        for pod in self._some(data, self._trainers()):
            self.cluster.end_training(pod, *end)

    @rule(data=st.data(), on=st.booleans())
    def suspend(self, data: st.DataObject, on: bool) -> None:
        for job in self._some(data, list(self.cluster.world.jobs.values())):
            self.cluster.respec(job, suspend=on)

    @rule(data=st.data(), how=st.sampled_from(DELETIONS))
    def delete(self, data: st.DataObject, how: Callable[[Cluster, FineTuneJob], None]) -> None:
        """With its children, without them, or with a finalizer that keeps it and them."""
        for job in self._some(data, list(self.cluster.world.jobs.values())):
            how(self.cluster, job)

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

    @rule(writes=st.integers(0, 5))
    def the_leader_stops_between_two_writes(self, writes: int) -> None:
        """Another one leads, and looks at everything."""
        self.cluster.stop_at(writes)

    @rule()
    def a_stopped_leaders_write_arrives(self) -> None:
        """It had looked at its lease before it was stopped."""
        self.cluster.late_write_arrives()

    @rule(gpus=NODES)
    def node_comes(self, gpus: int) -> None:
        if len(self.cluster.world.nodes) < 3:
            self.cluster.builder.node(gpus)

    @rule(data=st.data(), replicas=st.integers(0, 3))
    def resize(self, data: st.DataObject, replicas: int) -> None:
        for engine in self._some(data, list(self.cluster.world.engines.values())):
            self.cluster.respec(engine, replicas=replicas)

    @rule(data=st.data(), load=st.integers(1, 3))
    def an_autoscaler_follows(self, data: st.DataObject, load: int) -> None:
        """As HPA does: ceil(replicas that it sees x load of each that serves / target), for the load of so many."""
        self.cluster.stop_at(None)
        for engine in list(self.cluster.world.engines.values()):
            self.cluster.reconcile_engine(engine)
        steady = [engine for engine in self.cluster.world.engines.values() if self._serving(engine)]
        for engine in self._some(data, steady):
            desired = ceil(engine.status.replicas * load / self._serving(engine))
            assert desired == load, f"{engine.metadata.name} would spiral: {desired} for the load of {load}"
            self.cluster.respec(engine, replicas=desired)

    def _serving(self, engine: InferenceEngine) -> int:
        """How many replicas an autoscaler sees serve; 0 while one comes or goes, or one that sleeps is still seen."""
        slots = self.cluster.world.slots_of.get(identity(engine), {}).values()
        pods = {slot.key: pod_of(self.cluster.world, engine, slot.index) for slot in slots}
        seen = [slot for slot in slots if pods[slot.key]]
        return len(seen) if all(serves(pods[s.key]) and s.size and not s.deleting for s in seen) else 0

    @precondition(lambda self: len(self.cluster.world.nodes) > 1)
    @rule(data=st.data())
    def node_goes(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(sorted(self.cluster.world.nodes.values(), key=lambda n: n.key)))
        for pod in list(self.cluster.world.pods_on.get(node.key.name, {}).values()):
            self.cluster.builder.store.remove(pod.key, pod.uid)
        self.cluster.builder.store.remove(node.key, node.uid)

    def teardown(self) -> None:
        """Left alone, everything settles: every job ends or waits, and nothing is lent to anybody who is done."""
        if not hasattr(self, "cluster"):
            return
        for job in list(self.cluster.world.jobs.values()):
            self.cluster.respec(job, suspend=False)
        quiet, since = 0, self.cluster.now
        for _ in range(200):
            before = len(self.cluster.world.stage_jobs), len(live_claims(self.cluster.world))
            self.everybody_does_their_part()
            for pod in self._trainers():
                wanted_by = self.cluster.world.jobs.get(job_key(pod.key.namespace, pod.labels[JOB_LABEL]))
                if wanted_by is not None and not wanted_by.metadata.deletion_timestamp:
                    self.cluster.end_training(pod, 0, "Done")
            same = before == (len(self.cluster.world.stage_jobs), len(live_claims(self.cluster.world)))
            quiet = quiet + 1 if same and not before[1] else 0
            since = since if quiet else self.cluster.now
            pauses = [readiness(self.cluster.world, job).begins for job in self.cluster.world.jobs.values()]
            if self.cluster.now - since > PATIENCE and not any(ends and ends > self.cluster.now for ends in pauses):
                break
            # Who should have looked in between is found asleep afterwards.
            self.cluster.pass_time(self._seconds_to_the_next_look() if quiet > QUIET_ROUNDS else 20)
        assert not live_claims(self.cluster.world), "a claim outlived its job"
        assert not self._trainers(), "training goes on for a job that is gone"
        settled = Settled(self.cluster.world, self._pool(), self.cluster.now, self.quota)
        asking = {pod.owner.uid for pod in self.cluster.world.scale_ups.get("default", {}).values() if pod.owner}
        assert asking <= {job.metadata.uid for job in settled.waiting}, "somebody asks for nodes who needs none"
        for engine in self.cluster.world.engines.values():
            assert planned_status(self.cluster.world, engine, self.cluster.now).lent == 0
        why = describe(allocate_fenced(self.cluster.world, self._pool(), self.cluster.now))
        assert not settled.stuck(), f"there is something for {settled.stuck()}, but they wait: {why}"

    def _seconds_to_the_next_look(self) -> float:
        moment = self.cluster.queue.next_moment()
        return max(20.0, moment - self.cluster.now.timestamp() if moment else PATIENCE.total_seconds())

    @staticmethod
    def _some(data: st.DataObject, things: list[Any]) -> list[Any]:
        return [data.draw(st.sampled_from(things))] if things else []
