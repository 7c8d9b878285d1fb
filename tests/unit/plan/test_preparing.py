"""How many jobs prepare their data at once, and who begins when one has ended."""

import random
from collections import Counter
from typing import Any

import pytest

from dev.simulate.builder import NOW, PREPARED, WorldBuilder
from sluice_api.claim import Outcomes
from sluice_api.finetunejob import FineTuneJob
from sluice_api.meta import OUTCOMES_ANNOTATION
from sluice_api.reasons import Reason
from sluice_api.stages import Stage
from sluice_operator.handlers.watching import route_changes
from sluice_operator.observe.views import Key, StageJobView
from sluice_operator.observe.world import key_of
from sluice_operator.plan.job.decide import plan_job
from sluice_operator.plan.job.situation import JobDecision
from sluice_operator.settings import Limits


class Preparing:
    """Jobs whose Prepare begins, runs and ends, each looked at only when its key is in the queue."""

    def __init__(self, at_once: int = 3, per_namespace: int = 2) -> None:
        self.builder = WorldBuilder()
        self.builder.node(2)
        self.builder.pool(prepare={"atOnce": at_once, "perNamespace": per_namespace})
        self.queue: dict[Key, None] = {}
        route_changes(self.builder.store, self.add)

    def add(self, key: Key) -> None:
        self.queue[key] = None

    def decide(self, job: FineTuneJob) -> JobDecision:
        return plan_job(self.builder.world, self.builder.world.jobs[key_of(job)], NOW, Limits(), None, "")

    def settle(self, order: random.Random) -> None:
        """Look at all keys of jobs that are in the queue, until there are none."""
        while keys := [key for key in self.queue if key in self.builder.world.jobs]:
            key = order.choice(keys)
            del self.queue[key]
            job = self.builder.world.jobs[key]
            if job.spec.managed_by or job.metadata.deletion_timestamp:
                continue
            decision = self.decide(job)
            if decision.start and decision.start.stage is Stage.PREPARE:
                self.builder.stage_job(job, Stage.PREPARE)
            if job.status.summary != decision.reason:
                self.change(job, status={"summary": decision.reason})

    def change(self, job: FineTuneJob, **parts: Any) -> None:
        body = job.model_dump(mode="json", by_alias=True, exclude_none=True)
        body["metadata"] |= {"resourceVersion": str(self.builder._next()[0]), **parts.pop("metadata", {})}
        self.builder.put(FineTuneJob.model_validate({**body, **parts}))

    def ends(self, stage_job: StageJobView) -> None:
        """Its data is prepared."""
        assert stage_job.owner is not None
        key = Key("FineTuneJob", stage_job.key.namespace, stage_job.owner.name)
        record = {OUTCOMES_ANNOTATION: Outcomes(attempts=(PREPARED,)).to_json()}
        self.change(self.builder.world.jobs[key], metadata={"annotations": record})
        self.builder.store.remove(stage_job.key, stage_job.uid)

    @property
    def running(self) -> list[StageJobView]:
        return [stage_job for stage_job in self.builder.world.stage_jobs.values() if stage_job.stage is Stage.PREPARE]

    def unprepared(self, name: str, namespace: str = "team", **spec: Any) -> FineTuneJob:
        return self.builder.job(name, namespace=namespace, outcomes=(), **spec)


@pytest.mark.parametrize(
    ("running", "starting", "begins"),
    [
        ({}, {}, ""),
        ({"team": 1}, {}, ""),
        ({"team": 2}, {}, "2 jobs of namespace team prepare"),
        ({"team": 1}, {"team": 1}, "2 jobs of namespace team prepare"),
        ({"other": 2}, {}, ""),
        ({"other": 2, "third": 1}, {}, "3 jobs of pool default prepare"),
        ({"other": 2}, {"third": 1}, "3 jobs of pool default prepare"),
    ],
)
def test_prepare_waits_for_at_once_and_per_namespace(
    running: dict[str, int], starting: dict[str, int], begins: str
) -> None:
    scene = Preparing()
    job = scene.unprepared("job")
    for namespace, number in running.items():
        for index in range(number):
            scene.builder.stage_job(scene.unprepared(f"r{index}", namespace), Stage.PREPARE)
    for namespace, number in starting.items():
        for index in range(number):
            scene.builder.store.findings.start(key_of(scene.unprepared(f"s{index}", namespace)), begins=True)
    decision = scene.decide(job)
    assert (decision.start is None, begins in decision.message) == (bool(begins), True)
    assert decision.reason is (Reason.WAITING_TO_PREPARE if begins else Reason.PREPARING)


def test_prepare_at_once_counts_running_jobs_of_the_pool_only() -> None:
    scene = Preparing(at_once=1)
    scene.builder.pool("b", nodeSelector={"b": "b"})
    scene.builder.stage_job(scene.unprepared("elsewhere", resources={"pool": "b"}), Stage.PREPARE)
    scene.builder.stage_job(scene.unprepared("ended"), Stage.PREPARE, finished="Complete")
    scene.builder.stage_job(scene.builder.job("trains"), Stage.EXPORT)
    assert scene.decide(scene.unprepared("job")).start is not None


@pytest.mark.parametrize("seed", range(8))
def test_prepare_reaches_each_job_and_keeps_to_at_once(seed: int) -> None:
    """In any order, and though a tenant has forged the status of jobs that the operator leaves alone."""
    order = random.Random(seed)
    scene = Preparing()
    forged = {"summary": Reason.WAITING_TO_PREPARE}
    scene.change(scene.unprepared("forged", "a", managedBy="example.com/other"), status=forged)
    going = {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a/b"]}
    scene.change(scene.unprepared("going", "b"), metadata=going, status=forged)
    for index in range(12):
        scene.unprepared(f"job-{index}", order.choice("abc"))
    most = 0
    scene.settle(order)
    while running := scene.running:
        most = max(most, len(running))
        assert len(running) <= 3
        assert max(Counter(stage_job.key.namespace for stage_job in running).values()) <= 2
        if order.random() < 0.2:  # the job is deleted while its data is prepared
            gone = order.choice(running)
            assert gone.owner is not None
            owner = scene.builder.world.jobs[Key("FineTuneJob", gone.key.namespace, gone.owner.name)]
            scene.builder.store.remove(key_of(owner), owner.metadata.uid)
            scene.builder.store.remove(gone.key, gone.uid)
        else:
            scene.ends(order.choice(running))
        scene.settle(order)
    assert most == 3
    said = {job.metadata.name: job.status.summary for job in scene.builder.world.jobs.values()}
    assert (said.pop("forged"), said.pop("going")) == (Reason.WAITING_TO_PREPARE, Reason.WAITING_TO_PREPARE)
    assert set(said.values()) == {Reason.PENDING}  # prepared, and waits for GPUs


def test_prepare_of_the_next_job_begins_when_one_is_deleted() -> None:
    scene = Preparing(at_once=1)
    first, second = scene.unprepared("first"), scene.unprepared("second")
    scene.builder.stage_job(first, Stage.PREPARE)
    scene.settle(random.Random(0))
    assert scene.builder.world.jobs[key_of(second)].status.summary == Reason.WAITING_TO_PREPARE
    scene.builder.store.remove(key_of(first), first.metadata.uid)
    scene.settle(random.Random(0))
    assert {stage_job.owner.name for stage_job in scene.running if stage_job.owner} == {"first", "second"}
