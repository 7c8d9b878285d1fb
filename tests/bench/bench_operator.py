"""The operator with 2,000 FineTuneJobs of mixed states: start-up, memory, what a decision costs, writes when idle.

1,000 jobs are complete, 600 wait for GPUs, 300 have failed, 100 are suspended; 13 nodes of 8 GPUs hold 103 trainers
that the first operator has claimed for. The first start meets jobs without a status, and writes them all. The second
one meets everything as it should be, and one free GPU, for which it has to find the first of those that wait.
"""

import asyncio
import sys
import time
from datetime import UTC, datetime

from sluice_api.claim import AttemptOutcome, Outcomes
from sluice_api.meta import API_VERSION, OUTCOMES_ANNOTATION
from sluice_api.stages import Stage
from tests.bench.setting import Setting, counted, cpu_seconds, resident, setting, settled
from tests.integration.claim_scene import EXPORTED, MODEL, TRAINED, VOLUME, Body, outcomes_of_prepare
from tests.integration.running_operator import RunningOperator

STATES = {"complete": 1000, "waiting": 600, "failed": 300, "suspended": 100}
NODES, GPUS_EACH = 13, 8
AT_ONCE = 16
IDLE_SECONDS = 60


def job(state: str, number: int) -> Body:
    """A job of one of the states, as its annotation and its spec say it."""
    spec = {
        "model": {"uri": MODEL},
        "dataset": {"uri": f"pvc://{VOLUME}/rows.jsonl"},
        "output": {"uri": f"pvc://{VOLUME}/out"},
        "resources": {"gpus": 1, "memory": "100Mi", "cpu": "10m"},
        "suspend": state == "suspended",
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


async def create(here: Setting) -> None:
    """All jobs, some at a time."""
    limit = asyncio.Semaphore(AT_ONCE)

    async def post(body: Body) -> None:
        async with limit:
            await here.kube.call("POST", here.scene.path("finetunejobs"), body)

    await asyncio.gather(*(post(job(state, n)) for state, count in STATES.items() for n in range(count)))


def reconciles(operator: RunningOperator) -> str:
    """How many there were, and their mean."""
    count, total = (counted(operator, f"sluice_reconcile_seconds_{part}") for part in ("count", "sum"))
    return f"{count:.0f} reconciles, {total / max(count, 1) * 1000:.1f} ms each, awaiting included"


async def start_up(here: Setting, name: str, claims: int) -> tuple[RunningOperator, list[str]]:
    """Start an operator; it is there when it has made a claim more."""
    began = time.monotonic()
    operator = here.start()
    await operator.leads()
    leading = time.monotonic()
    trainers = here.scene.history.now["jobs"]
    await here.scene.history.until(lambda: len(trainers) > claims, "a claim is made", within=300)
    decided = time.monotonic()
    last_write = await settled(operator)
    return operator, [
        f"{name}",
        f"  start to leading                  {leading - began:>8.1f} s",
        f"  start to the first claim          {decided - began:>8.1f} s",
        f"  start to the last write           {last_write - began:>8.1f} s",
        f"  writes                            {counted(operator, 'sluice_api_writes_total'):>8.0f}",
        f"  processor time                    {cpu_seconds(operator):>8.1f} s",
        f"  resident memory                   {resident(operator):>8} MiB",
        f"  {reconciles(operator)}",
    ]


async def idle(operator: RunningOperator) -> list[str]:
    """A while in which nothing happens."""
    before = counted(operator, "sluice_api_writes_total"), cpu_seconds(operator)
    await asyncio.sleep(IDLE_SECONDS)
    writes = counted(operator, "sluice_api_writes_total") - before[0]
    share = (cpu_seconds(operator) - before[1]) / IDLE_SECONDS
    return [f"idle for {IDLE_SECONDS} s: {writes:.0f} writes, {share:.1%} of a core"]


async def main() -> None:
    """Print the figures."""
    async with setting() as here:
        here.scene.kubelet.runs = lambda _pod: False
        for number in range(NODES):
            await here.nodes.add(f"node-{number}", gpus=GPUS_EACH - (number == 0), cpu="64")
        began = time.monotonic()
        await create(here)
        lines = [f"{sum(STATES.values())} jobs made in {time.monotonic() - began:.0f} s", ""]
        operator, found = await start_up(here, "first start: no job has a status yet", 0)
        lines += [*found, *await idle(operator), ""]
        operator.end()
        await here.nodes.add("node-new", gpus=1, cpu="64")
        known = len(here.scene.history.now["jobs"])
        operator, found = await start_up(here, "second start: one GPU more, else nothing to change", known)
        lines += [*found, *await idle(operator)]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
