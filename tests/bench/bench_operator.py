"""How the operator's start, restart, memory and idle cost grow with the number of jobs.

There is a node of 8 GPUs for every 10 jobs, and an engine of two replicas for every 50. 40 % of the jobs are
complete, 15 % have failed, 5 % are suspended. The others ask for 4 GPUs each, and those for which there is no room
wait. At the first start no job has a status: the operator writes all of them, and claims for the jobs that can train.
At the second start everything is as it should be. Then a node comes, and after it a job of the highest priority that
may borrow.
"""

import asyncio
import os
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

from sluice_api.claim import AttemptOutcome, Outcomes
from sluice_api.meta import API_VERSION, OUTCOMES_ANNOTATION
from sluice_api.stages import Stage
from tests.bench.setting import Setting, counted, cpu_seconds, resident, setting, settled
from tests.integration.claim_scene import EXPORTED, MODEL, TRAINED, VOLUME, Body, is_slot, outcomes_of_prepare
from tests.integration.running_operator import RunningOperator

SIZES = tuple(int(size) for size in os.environ.get("SLUICE_BENCH_JOBS", "1000,3000,10000").split(","))
STATES = {"complete": 0.40, "asking": 0.40, "failed": 0.15, "suspended": 0.05}
JOBS_A_NODE, JOBS_AN_ENGINE, REPLICAS = 10, 50, 2
NODE_GPUS, JOB_GPUS = 8, 4
AT_ONCE = 16
IDLE_SECONDS = 30
PATIENCE = 600
POOL_DECISIONS = 'sluice_reconcile_seconds_count{kind="GPUPool"}'
PLOT = Path(__file__).parents[2] / "docs" / "benchmarks" / "operator.png"


@dataclass
class Found:
    """Figures of one size."""

    jobs: int
    training: int
    first_claim: float
    all_written: float
    writes: float
    cpu: float
    memory: int
    again_decided: float
    again_writes: float
    again_cpu: float
    again_memory: int
    node_to_claim: float
    job_to_claim: float
    idle_writes: float
    idle_share: float


def job(state: str, number: int, **scheduling: object) -> Body:
    """A job of one of the states, as its annotation and its spec say it."""
    spec = {
        "model": {"uri": MODEL},
        "dataset": {"uri": f"pvc://{VOLUME}/rows.jsonl"},
        "output": {"uri": f"pvc://{VOLUME}/out"},
        "resources": {"gpus": JOB_GPUS, "memory": "100Mi", "cpu": "10m"},
        "suspend": state == "suspended",
        "scheduling": {"policy": "Queue", **scheduling},
    }
    metadata = {"name": f"{state}-{number}", "annotations": {OUTCOMES_ANNOTATION: outcomes(state).to_json()}}
    return {"apiVersion": API_VERSION, "kind": "FineTuneJob", "metadata": metadata, "spec": spec}


def outcomes(state: str) -> Outcomes:
    """What has ended of a job."""
    now = datetime.now(UTC).replace(microsecond=0)
    record = outcomes_of_prepare()
    ended = {"started_at": now, "ended_at": now}
    if state == "complete":
        train = AttemptOutcome(stage=Stage.TRAIN, attempt=1, reason="Done", train=TRAINED.train, **ended)
        export = AttemptOutcome(stage=Stage.EXPORT, attempt=1, reason="Done", export=EXPORTED.export, **ended)
        return record.with_attempt(train).with_attempt(export)
    if state == "failed":
        return record.with_attempt(AttemptOutcome(stage=Stage.TRAIN, attempt=1, reason="OutOfMemory", **ended))
    return record


async def populate(here: Setting, jobs: int) -> None:
    """Nodes, engines that serve, and then jobs, some at a time."""
    limit = asyncio.Semaphore(AT_ONCE)

    async def post(body: Body) -> None:
        async with limit:
            await here.kube.call("POST", here.scene.path("finetunejobs"), body)

    for number in range(jobs // JOBS_A_NODE):
        await here.nodes.add(f"node-{number}", gpus=NODE_GPUS, cpu="64")
    engines = [f"engine-{number}" for number in range(jobs // JOBS_AN_ENGINE)]
    here.scene.kubelet.runs = lambda pod: any(is_slot(pod, engine) for engine in engines)
    for engine in engines:
        await here.scene.engine(engine, REPLICAS)
    operator, _ = await starts(here)
    for engine in engines:
        await here.scene.serves(REPLICAS, engine)
    operator.end()
    await asyncio.gather(*(post(job(state, n)) for state, part in STATES.items() for n in range(round(part * jobs))))


async def starts(here: Setting) -> tuple[RunningOperator, float]:
    """Start an operator that leads; when it was started."""
    began = time.monotonic()
    operator = here.start(stage_start_deadline_seconds=24 * 3600)
    await operator.leads()
    return operator, began


async def seconds_to_claim(here: Setting) -> float:
    """Until there is one training Job more."""
    began, trainers = time.monotonic(), here.scene.history.now["jobs"]
    known = len(trainers)
    await here.scene.history.until(lambda: len(trainers) > known, "a claim is made", within=300)
    return time.monotonic() - began


async def decided(operator: RunningOperator) -> None:
    """Wait until the pool has been decided once."""
    while not await asyncio.to_thread(counted, operator, POOL_DECISIONS):  # noqa: ASYNC110 - a metric is to be asked
        await asyncio.sleep(0.05)


async def measure(jobs: int) -> Found:
    """All figures of one size."""
    async with setting() as here:
        here.scene.history.patience = PATIENCE
        await populate(here, jobs)

        operator, began = await starts(here)
        trainers = here.scene.history.now["jobs"]
        await here.scene.history.until(lambda: trainers, "a claim is made", within=600)
        first_claim = time.monotonic() - began
        all_written = await settled(operator) - began
        writes, cpu, memory = counted(operator, "sluice_api_writes_total"), cpu_seconds(operator), resident(operator)
        operator.end()

        operator, began = await starts(here)
        await decided(operator)
        again_decided = time.monotonic() - began
        await settled(operator)
        again = counted(operator, "sluice_api_writes_total"), cpu_seconds(operator), resident(operator)
        training = len(trainers)

        claimed = asyncio.create_task(seconds_to_claim(here))
        await here.nodes.add("node-new", gpus=JOB_GPUS, cpu="64")
        node_to_claim = await claimed
        await settled(operator)
        claimed = asyncio.create_task(seconds_to_claim(here))
        await here.kube.call("POST", here.scene.path("finetunejobs"), job("urgent", 0, policy="Preempt", priority=100))
        job_to_claim = await claimed
        await settled(operator)

        idle = counted(operator, "sluice_api_writes_total"), cpu_seconds(operator)
        await asyncio.sleep(IDLE_SECONDS)
        idle_writes = counted(operator, "sluice_api_writes_total") - idle[0]
        idle_share = (cpu_seconds(operator) - idle[1]) / IDLE_SECONDS
        operator.end()
    return Found(
        jobs, training, first_claim, all_written, writes, cpu, memory,
        again_decided, *again, node_to_claim, job_to_claim, idle_writes, idle_share,
    )  # fmt: skip


ROWS = (
    ("jobs", "jobs", "{:.0f}"),
    ("  of these training", "training", "{:.0f}"),
    ("first start: nothing has a status yet", "", ""),
    ("  to the first claim, s", "first_claim", "{:.1f}"),
    ("  to the last write, s", "all_written", "{:.0f}"),
    ("  writes", "writes", "{:.0f}"),
    ("  processor time, s", "cpu", "{:.1f}"),
    ("  resident memory, MiB", "memory", "{:.0f}"),
    ("second start: all is as it should be", "", ""),
    ("  to the first decision, s", "again_decided", "{:.1f}"),
    ("  writes", "again_writes", "{:.0f}"),
    ("  processor time, s", "again_cpu", "{:.1f}"),
    ("  resident memory, MiB", "again_memory", "{:.0f}"),
    ("afterwards", "", ""),
    ("  a node comes: to a claim on it, s", "node_to_claim", "{:.1f}"),
    ("  a job comes that borrows: to its claim, s", "job_to_claim", "{:.1f}"),
    (f"  idle for {IDLE_SECONDS} s: writes", "idle_writes", "{:.0f}"),
    ("  idle: part of a core", "idle_share", "{:.1%}"),
)


def table(found: list[Found]) -> str:
    """A column for each size."""
    lines = []
    for name, field, form in ROWS:
        cells = [form.format(getattr(one, field)) for one in found] if field else []
        lines.append(f"{name:<44}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(line.rstrip() for line in lines) + "\n"


def plot(found: list[Found]) -> None:
    """Seconds and memory of a restart, by jobs."""
    mpl.use("Agg")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    jobs = [one.jobs for one in found]
    for name, field in (
        ("restart to the first decision", "again_decided"),
        ("processor time of a restart", "again_cpu"),
        ("a job comes that borrows: to its claim", "job_to_claim"),
    ):
        left.plot(jobs, [getattr(one, field) for one in found], "o-", label=name)
    left.set(xlabel="jobs", ylabel="seconds", ylim=0)
    left.legend(frameon=False)
    right.plot(jobs, [one.again_memory for one in found], "o-", color="#e45756")
    right.set(xlabel="jobs", ylabel="MiB resident after a restart", ylim=0)
    figure.savefig(PLOT, dpi=110)
    plt.close(figure)


def main() -> None:
    """Print the figures, and draw them."""
    found = [asyncio.run(measure(jobs)) for jobs in SIZES]
    sys.stdout.write(table(found))
    if len(found) > 1:
        plot(found)


if __name__ == "__main__":
    main()
