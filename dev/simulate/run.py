"""Play a trace: the planner's own decisions, a simulated cluster, and a clock that jumps from event to event."""

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import count

from dev.simulate.builder import GPU, NOW, PREPARED
from dev.simulate.cluster import Cluster
from dev.simulate.trace import Trace, TracedEngine, TracedJob
from sluice_api.finetunejob import FineTuneJob
from sluice_api.inferenceengine import InferenceEngine, Preemption
from sluice_api.meta import DEFAULT_POOL, ENGINE_LABEL, JOB_LABEL, STAGE_LABEL
from sluice_api.stages import Stage
from sluice_operator.facts.nodes import find_pool
from sluice_operator.observe.views import Key, PodView
from sluice_operator.observe.world import engine_key, identity, job_key
from sluice_operator.plan.engine.decide import plan_engine
from sluice_operator.plan.pool.allocate import allocate_fenced
from sluice_operator.status.engine import engine_status

START = NOW.replace(hour=0) + timedelta(days=1)
"""A Monday."""
TRAINING = "training"
MOST_ROUNDS = 60


class Policy(StrEnum):
    """How a cluster is shared."""

    HALVES = "dedicated halves"
    QUEUE = "one pool, jobs queue"
    SLUICE = "Sluice"


@dataclass
class JobRecord:
    """What became of a job."""

    namespace: str
    arrived: datetime
    started: datetime | None = None
    """When it first had its GPUs."""
    ended: datetime | None = None
    interruptions: int = 0


@dataclass(frozen=True)
class Sample:
    """GPUs from one moment until the next."""

    at: datetime
    training: int
    serving: int
    wanted: int
    """Replicas that the engines' autoscalers ask for."""
    lent: int
    waiting: int
    """Jobs."""


@dataclass
class Played:
    """A trace under one policy."""

    policy: Policy
    gpus: int
    ends: datetime
    samples: list[Sample] = field(default_factory=list)
    jobs: dict[str, JobRecord] = field(default_factory=dict)


def play(trace: Trace, policy: Policy) -> Played:
    """Play a trace to its end; jobs that still run or wait then are counted as they are."""
    return _Play(trace, policy).run()


class _Play:
    def __init__(self, trace: Trace, policy: Policy) -> None:
        self.trace = trace
        self.policy = policy
        self.cluster = _Timed(trace)
        self.cluster.now = START
        ends = START + timedelta(days=trace.days)
        self.played = Played(policy, sum(group.count * group.gpus for group in trace.nodes), ends)
        self.left: dict[str, float] = {}
        """Seconds that each job still has to train."""
        self._order = count()
        self._events: list[tuple[datetime, int, Callable[[], None]]] = []
        self._ends: dict[str, datetime] = {}
        """When each trainer's pod ends, by uid, if it is left alone."""
        self._looks_at = START
        """The next moment at which nothing happens, but decisions are made again."""

    def run(self) -> Played:
        self._settle_in()
        while self._events and self._events[0][0] < self.played.ends:
            at = self._events[0][0]
            self.cluster.now = self.cluster.builder.clock = at
            while self._events and self._events[0][0] == at:
                heapq.heappop(self._events)[2]()
            self._settle()
            self._sample()
        return self.played

    def _settle_in(self) -> None:
        nodes = [gpus for group in self.trace.nodes for gpus in [group.gpus] * group.count]
        halves = self.policy is Policy.HALVES
        terms = self.trace.pool.model_dump(by_alias=True, exclude_unset=True)
        self.cluster.builder.pool(DEFAULT_POOL, **terms, nodeSelector={"half": "inference"} if halves else {})
        if halves:
            self.cluster.builder.pool(TRAINING, **terms, nodeSelector={"half": TRAINING})
            nodes = [part for gpus in nodes for part in (gpus - gpus // 2, gpus // 2)]
        for number, gpus in enumerate(nodes):
            half = TRAINING if number % 2 else "inference"
            self.cluster.builder.node(gpus, labels={"half": half} if halves else None)
        for namespace, labels in self.trace.namespaces.items():
            self.cluster.builder.namespace(namespace, **labels)
        for engine in self.trace.engines:
            lends = engine.preemption if self.policy is Policy.SLUICE else Preemption()
            self.cluster.builder.engine(engine.name, engine.at(START), engine.namespace, preemption=lends)
            for hour in range(24 * self.trace.days):
                self._at(START + timedelta(hours=hour), self._scaling(engine))
        for number, job in enumerate(self.trace.jobs):
            self._at(START + timedelta(minutes=job.arrives_minutes), self._arrival(f"job-{number}", job))

    def _at(self, moment: datetime, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (max(moment, self.cluster.now), next(self._order), act))

    def _scaling(self, engine: TracedEngine) -> Callable[[], None]:
        def scale() -> None:
            held = self.cluster.world.engines[engine_key(engine.namespace, engine.name)]
            self.cluster.respec(held, replicas=engine.at(self.cluster.now))

        return scale

    def _arrival(self, name: str, job: TracedJob) -> Callable[[], None]:
        def arrive() -> None:
            now = self.cluster.now
            scheduling = {
                "policy": "Preempt" if self.policy is Policy.SLUICE else "Queue",
                "priority": job.priority,
                "interruption": job.interruption.model_dump(by_alias=True),
            }
            prepared = PREPARED.model_copy(update={"started_at": now, "ended_at": now})
            resources = {"pool": TRAINING} if self.policy is Policy.HALVES else {}
            self.cluster.builder.job(
                name, job.gpus, job.namespace, outcomes=(prepared,), scheduling=scheduling, resources=resources
            )
            self.left[name] = job.trains_minutes * 60
            self.played.jobs[name] = JobRecord(job.namespace, now)

        return arrive

    def _settle(self) -> None:
        """Everybody does their part until nobody has anything to do."""
        for _ in range(MOST_ROUNDS):
            before = self.cluster.builder.version
            self.cluster.reconcile_pool()
            for job in list(self._active()):
                self.cluster.reconcile_job(job)
            for engine in list(self.cluster.world.engines.values()):
                if self._differs(engine):
                    self.cluster.reconcile_engine(engine)
            self.cluster.controllers()
            self.cluster.scheduler()
            self.cluster.kubelet()
            self._follow_trainers()
            if self.cluster.builder.version == before:
                break
        else:
            raise RuntimeError(f"nothing settled at {self.cluster.now}: a decision is taken back again and again")
        self._look_again()

    def _differs(self, engine: InferenceEngine) -> bool:
        """Whether an engine has anything to do."""
        decision = plan_engine(self.cluster.world, engine, self.cluster.now)
        places = decision.placeholders
        writes = (decision.apply, decision.stop, decision.remove, places.make, places.nominate, places.remove)
        status = engine_status(self.cluster.world, engine, decision, self.cluster.now)
        return any(writes) or status != engine.status

    def _active(self) -> Iterator[FineTuneJob]:
        """Jobs that have more to do than wait."""
        for jobs in self.cluster.world.unfinished.values():
            for job in jobs.values():
                if self.cluster.world.stage_jobs_of.get(identity(job)) or job.status.allocation:
                    yield job

    def _look_again(self) -> None:
        """The next moment at which time alone changes a decision."""
        world, now = self.cluster.world, self.cluster.now
        moments = [plan_engine(world, engine, now).again_at for engine in world.engines.values()]
        for name in {DEFAULT_POOL, *(key.name for key in world.pools)}:
            if pool := find_pool(world, name):
                moments += [allocate_fenced(world, pool, now).again_at]
        moments += [ready for ready in self.cluster.ready_at.values() if ready > now]
        again = min((moment for moment in moments if moment and moment > now), default=None)
        if again and not now < self._looks_at <= again:  # else it is asked then, and once is enough
            self._looks_at = again
            self._at(again, lambda: None)

    def _follow_trainers(self) -> None:
        """A trainer that has its node ends when it has done its work; one that is stopped keeps what it has done."""
        now = self.cluster.now
        for pod in list(self.cluster.world.pods.values()):
            if pod.labels.get(STAGE_LABEL) != Stage.TRAIN or not pod.node:
                continue
            name = pod.labels[JOB_LABEL]
            if pod.uid not in self._ends and not pod.ended:
                record = self.played.jobs[name]
                record.started = record.started or now
                self._ends[pod.uid] = now + timedelta(seconds=self.trace.starts_seconds + self.left[name])
                self._at(self._ends[pod.uid], self._end(pod, name))
            elif pod.ended and pod.uid in self._ends:
                self.left[name] = min(self.left[name], max(0.0, (self._ends.pop(pod.uid) - now).total_seconds()))

    def _end(self, pod: PodView, name: str) -> Callable[[], None]:
        def end() -> None:
            held = self.cluster.world.pods.get(pod.key)
            if pod.uid in self._ends and held and held.uid == pod.uid and not held.ended:
                self.left[name] = 0.0
                self.cluster.end_training(held, 0, "Done")
                self.played.jobs[name].ended = self.cluster.now

        return end

    def _sample(self) -> None:
        world = self.cluster.world
        bound = [pod for pod in world.pods.values() if pod.node and not pod.ended]
        for name, record in self.played.jobs.items():
            if job := world.jobs.get(job_key(record.namespace, name)):
                record.interruptions = len(job.status.interruptions)
        self.played.samples.append(
            Sample(
                at=self.cluster.now,
                training=sum(pod.requests[GPU] for pod in bound if pod.labels.get(STAGE_LABEL) == Stage.TRAIN),
                serving=sum(pod.requests[GPU] for pod in bound if ENGINE_LABEL in pod.labels and pod.ready),
                wanted=sum(engine.spec.replicas for engine in world.engines.values()),
                lent=sum(engine.status.lent for engine in world.engines.values()),
                waiting=sum(1 for job in self.played.jobs.values() if job.started is None),
            )
        )


class _Timed(Cluster):
    """A cluster in which an engine takes its time to start."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._start_seconds = {engine.name: engine.start_seconds for engine in trace.engines}
        self.ready_at: dict[Key, datetime] = {}

    def kubelet(self) -> None:
        """Engines that have had their time are ready; everything else as it is there."""
        self.ready_at = {key: at for key, at in self.ready_at.items() if key in self.world.pods}
        super().kubelet()

    def is_up(self, pod: PodView) -> bool:
        """Whether an engine's pod has had the time that it takes to start."""
        seconds = self._start_seconds[pod.labels[ENGINE_LABEL]]
        return self.now >= self.ready_at.setdefault(pod.key, self.now + timedelta(seconds=seconds))
