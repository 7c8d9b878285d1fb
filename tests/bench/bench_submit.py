"""Submit to pod: the time from `kubectl apply` of a job to its pod, one job after another on an idle control plane.

(a) A job with prepared data, on nodes with free GPUs: the time until its training pod exists. The goal is 100 ms for
the median and 500 ms for the 99th percentile. (b) A new job: the time until the pod of its Prepare stage exists.

The time is split by who wrote: the API server and etcd (the job), the operator (the stage's Job), the Job controller
(the pod). etcd, API server, controllers, scheduler, operator and the measuring process, which watches, share the
machine's cores.
"""

import asyncio
import sys
import time

from sluice_api.meta import API_VERSION
from sluice_api.stages import Stage
from tests.bench.setting import HEAD, Setting, milliseconds, setting
from tests.integration.claim_scene import is_of
from tests.integration.history import Version
from tests.integration.progress_scene import SLUICE

JOBS = 100
NODES, GPUS_EACH = 14, 8
REST_SECONDS = 0.3
POOL = {
    "apiVersion": API_VERSION,
    "kind": "GPUPool",
    "metadata": {"name": "default"},
    "spec": {"prepare": {"atOnce": 2 * JOBS, "perNamespace": 2 * JOBS}},
}
"""No job waits for another one's Prepare to end: here none does."""


async def submit(here: Setting, name: str, stage: Stage) -> tuple[float, float, float]:
    """Seconds until the job is stored, from there until its stage's Job, from there until the pod."""
    began = time.monotonic()
    await here.scene.job(name, "Queue", prepared=stage is Stage.TRAIN)

    def first(plural: str) -> Version | None:
        return next((v for v in here.scene.history.versions[-200:] if v.plural == plural and fits(v)), None)

    def fits(version: Version) -> bool:
        return version.name == name if version.plural == "finetunejobs" else is_of(version.body, name, stage)

    pod = await here.scene.history.until(lambda: first("pods"), f"{name} has a pod")
    stored, made = first("finetunejobs"), first("jobs")
    assert stored
    assert made
    return stored.at - began, made.at - stored.at, pod.at - made.at


async def measure(here: Setting, stage: Stage, prefix: str) -> list[str]:
    """A line for each part of the way."""
    ways = []
    for number in range(JOBS + 5):
        ways.append(await submit(here, f"{prefix}-{number}", stage))
        await asyncio.sleep(REST_SECONDS)
    ways = ways[5:]  # the first ones open connections
    stored, made, podded = zip(*ways, strict=True)
    return [
        milliseconds(f"submit to {stage} pod", map(sum, ways)),
        milliseconds("  the job is stored", stored),
        milliseconds("  the operator makes its Job", made),
        milliseconds("  the Job controller makes the pod", podded),
    ]


async def main() -> None:
    """Print the table."""
    async with setting() as here:
        here.scene.kubelet.runs = lambda _pod: False
        await here.scene.kube.call("POST", f"{SLUICE}/gpupools", POOL)
        for number in range(NODES):
            await here.nodes.add(f"node-{number}", gpus=GPUS_EACH, cpu="64")
        operator = here.start()
        await operator.leads()
        await asyncio.sleep(2)
        lines = [HEAD, *await measure(here, Stage.TRAIN, "a")]
        lines += await measure(here, Stage.PREPARE, "b")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
