"""What holds after every step, whatever happens in whatever order."""

from collections import Counter

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sluice_api.finetunejob import FineTuneJob
from sluice_api.inferenceengine import InferenceEngine
from sluice_operator.observe.views import PodView
from sluice_operator.plan.claims import live_claims
from sluice_operator.plan.engine import plan_engine
from sluice_operator.plan.slots import floor_of
from tests.unit.plan.simulated import Cluster
from tests.unit.plan.worlds import GPU


class Lending(RuleBasedStateMachine):
    """Jobs come, go and fail, engines are resized, nodes vanish, and every component may be late."""

    @initialize(gpus=st.lists(st.integers(1, 4), min_size=1, max_size=3), engines=st.integers(0, 2), data=st.data())
    def start(self, gpus: list[int], engines: int, data: st.DataObject) -> None:
        self.cluster = Cluster()
        self.jobs = 0
        for count in gpus:
            self.cluster.town.node(count)
        for number in range(engines):
            terms = {
                "policy": data.draw(st.sampled_from(["ScaleDown", "ScaleDown", "Never"])),
                "minReplicas": data.draw(st.integers(0, 2)),
            }
            self.cluster.town.engine(f"e{number}", data.draw(st.integers(0, 3)), preemption=terms)

    @rule(gpus=st.integers(1, 2), preempt=st.booleans(), priority=st.integers(0, 1))
    def submit(self, gpus: int, preempt: bool, priority: int) -> None:
        self.jobs += 1
        scheduling = {"policy": "Preempt" if preempt else "Queue", "priority": priority}
        self.cluster.town.job(f"j{self.jobs}", gpus, scheduling=scheduling)

    @rule()
    def reconcile_pool(self) -> None:
        self.cluster.reconcile_pool()

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

    @rule()
    def scheduler(self) -> None:
        self.cluster.scheduler()

    @rule(seconds=st.sampled_from([1, 5, 70]))
    def time_passes(self, seconds: int) -> None:
        self.cluster.pass_time(seconds)

    @rule(data=st.data(), end=st.sampled_from([(0, "Done"), (70, "TrainerFailed"), (65, "OutOfMemory"), (75, "Requeued")]))
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
        """Claims on a node never exceed it, whoever is bound there."""
        if not hasattr(self, "cluster"):
            return
        for node in self.cluster.world.nodes.values():
            claimed = sum(c.claim.gpus for c in live_claims(self.cluster.world) if c.claim.node == node.key.name)
            assert claimed <= node.allocatable[GPU], f"{claimed} claimed on {node.key.name}"

    @invariant()
    def no_slot_is_lent_twice(self) -> None:
        if hasattr(self, "cluster"):
            lent = Counter(slot for live in live_claims(self.cluster.world) for slot in live.claim.borrowed)
            assert all(count == 1 for count in lent.values()), lent

    @invariant()
    def one_trainer_a_job(self) -> None:
        if hasattr(self, "cluster"):
            owners = Counter(live.job.metadata.uid for live in live_claims(self.cluster.world))
            assert all(count == 1 for count in owners.values()), owners

    @invariant()
    def a_claim_takes_no_engine_below_its_floor(self) -> None:
        """What is stopped for a claim leaves the floor; a floor may still be missed for want of GPUs."""
        if not hasattr(self, "cluster"):
            return
        for engine in self.cluster.world.engines.values():
            decision = plan_engine(self.cluster.world, engine, self.cluster.now)
            lent = sum(1 for slot in decision.status.slots if slot.lent_to)
            assert not lent or self._left(engine, lent) >= 0

    def _left(self, engine: InferenceEngine, lent: int) -> int:
        """Loans that were made while the engine was larger than now are not to blame."""
        return engine.spec.replicas if engine.spec.replicas < floor_of(engine) + lent else engine.spec.replicas - lent - floor_of(engine)

    def teardown(self) -> None:
        """Left alone, everything settles: every job ends or waits, and nothing is lent to anybody who is done."""
        if not hasattr(self, "cluster"):
            return
        for job in list(self.cluster.world.jobs.values()):
            self.cluster.respec(job, suspend=False)
        for _ in range(60):
            self._round()
        assert not live_claims(self.cluster.world), "a claim outlived its job"
        for engine in self.cluster.world.engines.values():
            assert plan_engine(self.cluster.world, engine, self.cluster.now).status.lent == 0
        stuck = [job.metadata.name for job in self._waiting() if not self._hopeless(job)]
        assert not stuck, f"something fits and nothing runs, but {stuck} wait"

    def _round(self) -> None:
        self.cluster.reconcile_pool()
        for job in list(self.cluster.world.jobs.values()):
            self.cluster.reconcile_job(job)
        for engine in list(self.cluster.world.engines.values()):
            self.cluster.reconcile_engine(engine)
        self.cluster.controllers()
        self.cluster.scheduler()
        self.cluster.kubelet()
        for pod in self._trainers():
            self.cluster.end_training(pod, 0, "Done")
        self.cluster.pass_time(20)

    def _waiting(self) -> list[FineTuneJob]:
        return [job for job in self.cluster.world.jobs.values() if job.status.finished_at is None]

    def _hopeless(self, job: FineTuneJob) -> bool:
        """Whether engines' own needs, or the size of the nodes, leave nothing for a job, or for one before it."""
        return self.cluster.world.engines != {} or any(
            other.spec.resources.gpus > max(node.allocatable[GPU] for node in self.cluster.world.nodes.values())
            for other in self._waiting()
        )

    def _trainers(self) -> list[PodView]:
        pods = self.cluster.world.pods.values()
        return [p for p in pods if p.labels.get("sluice.dev/stage") == "Train" and p.node and not p.ended]

    @staticmethod
    def _some(data: st.DataObject, things: list) -> list:  # type: ignore[type-arg]
        return [data.draw(st.sampled_from(things))] if things else []


Lending.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking a long story takes longer than reading it
)
TestLending = Lending.TestCase
