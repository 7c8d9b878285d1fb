"""Kueue's own benchmark trace, run by Sluice: 15,000 jobs of 30 queues, admitted, and marked finished.

The trace is Kueue's test/performance/scheduler: 5 cohorts of 6 queues. Each queue has a quota of 20 and may borrow
what the others of its cohort leave. Each queue gets 350 small jobs (1 unit for 200 ms, one every 100 ms), 100 medium
ones (5 units for 500 ms, every 500 ms) and 50 large ones (20 units for 1 s, every 1.2 s). Here a cohort is a GPUPool
of one node of 120 GPUs, a queue is a namespace, a unit is a GPU, and the priorities of the classes are 50, 100 and
200. As in Kueue's test, nothing runs: the process that makes the jobs waits until each is admitted (its training Job
is created), and marks it finished when its time is over. Unlike there, no job is preempted, and a job passes through
the operator once more when it has finished.

Capacity alone allows 66 s. Kueue ff69552e79, on two cores with etcd and API server beside it, took 417 s and 656 MB.
"""

import asyncio
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median, quantiles

from dev.cluster.processes import Processes
from sluice_api.claim import AttemptOutcome, Outcomes
from sluice_api.meta import API_VERSION, JOB_LABEL, OUTCOMES_ANNOTATION
from sluice_api.reasons import Reason
from sluice_api.stages import Stage
from tests.bench.setting import Bare, bare, cpu_of, cpu_seconds, resident, settled, writes_by_verb
from tests.integration.claim_scene import EXPORTED, MODEL, TRAINED, VOLUME, Body, outcomes_of_prepare
from tests.integration.nodes import MERGE_PATCH, add_volume

PART = float(os.environ.get("SLUICE_TRACE_PART", "1"))
"""So much of the trace: for a look at it."""
COHORTS, QUEUES, COHORT_GPUS = 5, 6, 120


@dataclass(frozen=True)
class Class:
    """Jobs of one shape."""

    name: str
    count: int
    gpus: int
    seconds: float
    every: float
    priority: int


CLASSES = (
    Class("small", 350, 1, 0.2, 0.1, 50),
    Class("medium", 100, 5, 0.5, 0.5, 100),
    Class("large", 50, 20, 1.0, 1.2, 200),
)


@dataclass
class Runner:
    """Makes the jobs, sees them admitted, and marks them finished."""

    here: Bare
    made: dict[str, float] = field(default_factory=dict)
    admitted: dict[str, float] = field(default_factory=dict)
    finished: dict[str, float] = field(default_factory=dict)
    classes: dict[str, Class] = field(default_factory=dict)
    _over: dict[str, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))

    async def make_all(self) -> None:
        """Every queue's classes beside each other."""
        await asyncio.gather(*(self._make(number, kind) for number in range(COHORTS * QUEUES) for kind in CLASSES))

    async def _make(self, queue: int, kind: Class) -> None:
        began = time.monotonic()
        for number in range(round(kind.count * PART)):
            await asyncio.sleep(max(0.0, began + number * kind.every - time.monotonic()))
            name = f"{kind.name}-{queue}-{number}"
            self.classes[name] = kind
            self.made[name] = time.monotonic()
            await self.here.kube.call("POST", path(queue, "finetunejobs"), job(name, queue, kind))

    async def watch_results(self) -> None:
        """See every job succeed."""
        async for event in self.here.kube.watch(f"/apis/{API_VERSION}/finetunejobs"):
            if event["object"].get("status", {}).get("summary") == Reason.SUCCEEDED:
                self._over[event["object"]["metadata"]["name"]].set()

    async def watch(self, marks: asyncio.TaskGroup) -> None:
        """See every training Job as it is made, and have it marked finished."""
        async for event in self.here.kube.watch("/apis/batch/v1/jobs"):
            if event["type"] != "ADDED":
                continue
            metadata = event["object"]["metadata"]
            name = metadata["labels"][JOB_LABEL]
            self.admitted[name] = time.monotonic()
            marks.create_task(self._mark(name, metadata["namespace"], metadata["name"]))

    async def _mark(self, name: str, namespace: str, stage_job: str) -> None:
        """What the Job controller and the trainer would say when it has ended."""
        await asyncio.sleep(self.classes[name].seconds)
        here, at = f"namespaces/{namespace}", now()
        record = prepared_and_exported().with_attempt(
            AttemptOutcome(stage=Stage.TRAIN, attempt=1, reason="Done", train=TRAINED.train, started_at=at, ended_at=at)
        )
        annotations = {"metadata": {"annotations": {OUTCOMES_ANNOTATION: record.to_json()}}}
        await self.here.kube.call("PATCH", f"/apis/{API_VERSION}/{here}/finetunejobs/{name}", annotations, MERGE_PATCH)
        # Its GPUs come free with the Job. Which of two kinds' events comes first nobody knows, so one after the other.
        await self._over[name].wait()
        await self.here.kube.call("PATCH", f"/apis/batch/v1/{here}/jobs/{stage_job}/status", complete(), MERGE_PATCH)
        self.finished[name] = time.monotonic()

    async def until_all_finished(self, count: int) -> None:
        """Wait for the last mark."""
        while len(self.finished) < count:  # noqa: ASYNC110 - as Kueue's does
            await asyncio.sleep(0.05)


def path(queue: int, plural: str) -> str:
    """Where a queue's jobs are."""
    return f"/apis/{API_VERSION}/namespaces/queue-{queue}/{plural}"


def now() -> datetime:
    """To the second, as Kubernetes writes it."""
    return datetime.now(UTC).replace(microsecond=0)


def prepared_and_exported() -> Outcomes:
    """All that is not the GPUs' business has been done before."""
    at = now()
    export = AttemptOutcome(
        stage=Stage.EXPORT, attempt=1, reason="Done", export=EXPORTED.export, started_at=at, ended_at=at
    )
    return outcomes_of_prepare().with_attempt(export)


def job(name: str, queue: int, kind: Class) -> Body:
    """One job of the trace."""
    spec = {
        "model": {"uri": MODEL},
        "dataset": {"uri": f"pvc://{VOLUME}/rows.jsonl"},
        "output": {"uri": f"pvc://{VOLUME}/out"},
        "resources": {"gpus": kind.gpus, "memory": "1Mi", "cpu": "1m", "pool": f"cohort-{queue // QUEUES}"},
        "training": {"batchSize": 64},
        "scheduling": {"priority": kind.priority},
    }
    metadata = {"name": name, "annotations": {OUTCOMES_ANNOTATION: prepared_and_exported().to_json()}}
    return {"apiVersion": API_VERSION, "kind": "FineTuneJob", "metadata": metadata, "spec": spec}


def complete() -> Body:
    """The status of a Job that has ended well."""
    at = now().isoformat().replace("+00:00", "Z")
    conditions = [
        {"type": kind, "status": "True", "reason": "CompletionsReached", "lastTransitionTime": at, "lastProbeTime": at}
        for kind in ("SuccessCriteriaMet", "Complete")
    ]
    return {"status": {"startTime": at, "completionTime": at, "succeeded": 1, "conditions": conditions}}


async def cohorts(here: Bare) -> None:
    """Pools of one node each, and the queues' namespaces."""
    for cohort in range(COHORTS):
        label = {"bench": f"cohort-{cohort}"}
        await here.nodes.add(f"cohort-{cohort}", gpus=COHORT_GPUS, cpu="64", **label)
        pool = {"metadata": {"name": f"cohort-{cohort}"}, "spec": {"nodeSelector": label}}
        await here.kube.call(
            "POST", f"/apis/{API_VERSION}/gpupools", {"apiVersion": API_VERSION, "kind": "GPUPool", **pool}
        )
    for queue in range(COHORTS * QUEUES):
        await here.kube.call("POST", "/api/v1/namespaces", {"metadata": {"name": f"queue-{queue}"}})
        await add_volume(here.kube, f"queue-{queue}", VOLUME)


def used(runner: Runner, wall: float) -> float:
    """Which part of all GPUs was in use on average, while there was something to do."""
    seconds = sum((runner.finished[name] - runner.admitted[name]) * kind.gpus for name, kind in runner.classes.items())
    return seconds / (wall * COHORTS * COHORT_GPUS)


def waits(runner: Runner) -> Iterator[str]:
    """From the creation of a job to its admission, by class."""
    yield f"{'seconds to admission':<22}{'mean':>8}{'p50':>8}{'p95':>8}{'most':>8}{'jobs':>8}"
    for kind in CLASSES:
        took = sorted(runner.admitted[name] - runner.made[name] for name, of in runner.classes.items() if of is kind)
        p95 = quantiles(took, n=20)[18]
        figures = (sum(took) / len(took), median(took), p95, took[-1])
        yield f"  {kind.name:<20}" + "".join(f"{figure:>8.1f}" for figure in figures) + f"{len(took):>8}"


async def main() -> None:
    """Print the figures."""
    async with bare() as here:
        await cohorts(here)
        operator = here.start(watch_namespaces="")
        await operator.leads()
        runner = Runner(here)
        before, began = cpu_seconds(operator), time.monotonic()
        count = sum(round(kind.count * PART) for kind in CLASSES) * COHORTS * QUEUES
        async with asyncio.TaskGroup() as tasks:  # the first that fails ends all
            watching = [tasks.create_task(watch) for watch in (runner.watch(tasks), runner.watch_results())]
            await runner.make_all()
            made = time.monotonic() - began
            await runner.until_all_finished(count)
            for watch in watching:
                watch.cancel()
        wall = time.monotonic() - began
        spent = cpu_seconds(operator) - before
        last_write = await settled(operator) - began
        verbs, most = writes_by_verb(operator), resident(operator, most=True)
        servers = {process.name: cpu_of(process.pid) for process in Processes(here.plane.state)}
    writes = sum(verbs.values())
    lines = [
        f"{count} jobs, made within {made:.0f} s",
        f"all finished after                  {wall:>8.0f} s, {count / wall:.0f} a second",
        f"the operator's last write after     {last_write:>8.0f} s",
        f"GPUs in use                         {used(runner, wall):>8.0%}",
        f"operator: processor time            {spent:>8.0f} s, {spent / count * 1000:.1f} ms a job",
        f"operator: most resident memory      {most:>8} MiB",
        f"operator: writes                    {writes:>8.0f}, {writes / count:.1f} a job: "
        + ", ".join(f"{verb} {number / count:.2f}" for verb, number in sorted(verbs.items())),
        "processor time of the others:        "
        + ", ".join(f"{name} {spent:.0f} s" for name, spent in servers.items())
        + f", what makes the jobs {time.process_time():.0f} s",
        "",
        *waits(runner),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
