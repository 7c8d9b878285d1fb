"""Progress: how many reports a second the endpoint takes when its tokens are cached, and how many API writes they
cause.

The control plane is real, and each trainer has a training Job, a pod and a token. The operator's endpoint runs in
this process, the trainers in another one. Both share the machine's cores with etcd and the API server.

    python -m tests.bench.bench_progress
"""

import asyncio
import json
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

from dev.cluster import control_plane
from sluice_api.reports import TRAINING_REPORTS_PATH
from sluice_operator import metrics
from sluice_operator.observe.parse import parse
from sluice_operator.progress import server
from tests.integration.kubectl import Kubectl
from tests.integration.progress_scene import SLUICE, Scene, scene

TRAINERS = 100
SECONDS = 20


@dataclass(frozen=True)
class Load:
    """What the trainers saw."""

    answers: dict[int, int]
    latencies: list[float]
    seconds: float


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    load: Load
    writes: float

    def __str__(self) -> str:
        accepted = self.load.answers.get(202, 0)
        cuts = quantiles(self.load.latencies, n=100)
        others = {status: count for status, count in self.load.answers.items() if status != 202}
        return (
            f"{self.name:<34}{accepted / self.load.seconds:>10.0f}{cuts[49] * 1000:>10.1f}{cuts[98] * 1000:>10.1f}"
            f"{self.writes / self.load.seconds:>12.1f}{accepted / max(self.writes, 1):>18.1f}   {others or ''}"
        )


HEAD = f"{'':<34}{'reports/s':>10}{'p50 ms':>10}{'p99 ms':>10}{'writes/s':>12}{'reports a write':>18}   refused"


async def trainer(port: int, token: str, first: int, every: float, until: float, load: Load) -> None:
    """One trainer with one connection: a report, its answer, and the next when it is due."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sequence, due = first, time.monotonic()
    while (now := time.monotonic()) < until:
        await asyncio.sleep(max(0, due - now))
        due += every
        report = {"attempt": 1, "sequence": sequence, "activity": "Training", "step": sequence, "totalSteps": 10**6}
        body = json.dumps(report | {"loss": 2.5, "epoch": 0.5, "tokensPerSecond": 1234.5, "secondsLeft": 250}).encode()
        sequence += 1
        began = time.perf_counter()
        writer.write(
            f"POST {TRAINING_REPORTS_PATH} HTTP/1.1\r\nHost: sluice\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
        await reader.readexactly(int(length))
        load.latencies.append(time.perf_counter() - began)
        status = int(head.split(b" ", 2)[1])
        load.answers[status] = load.answers.get(status, 0) + 1
    writer.close()


async def trainers(port: int, tokens: list[str], first: int, every: float, seconds: float) -> Load:
    """All trainers at once, spread over the first interval."""
    began = time.monotonic()
    load = Load({}, [], seconds)

    async def late(place: int, token: str) -> None:
        await asyncio.sleep(every * place / len(tokens))
        await trainer(port, token, first, every, began + seconds, load)

    await asyncio.gather(*(late(place, token) for place, token in enumerate(tokens)))
    return load


def run_trainers(port: int, tokens: list[str], first: int, every: float, seconds: float) -> Load:
    """The trainers' process."""
    return asyncio.run(trainers(port, tokens, first, every, seconds))


def writes() -> float:
    """Writes of status.progress so far."""
    return sum(
        sample.value
        for family in metrics.API_WRITES.collect()
        for sample in family.samples
        if sample.name.endswith("_total") and sample.labels["verb"] == "progress"  # conflicts too
    )


async def follow(here: Scene) -> None:
    """Keep the store's jobs up to date, as the operator's watch does: each write carries the newest version."""
    async for event in here.kube.watch(f"{SLUICE}/finetunejobs"):
        here.store.put(parse("FineTuneJob", event["object"]), seen=True)


async def measure(here: Scene, tokens: list[str], name: str, every: float) -> Row:
    """One line of the table, after every token has been reviewed once."""
    loop, port = asyncio.get_running_loop(), here.settings.progress_port
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        async with here.serving():
            await loop.run_in_executor(process, run_trainers, port, tokens, 1, 1.0, 2.0)
            before = writes()
            load = await loop.run_in_executor(process, run_trainers, port, tokens, 1000, every, SECONDS)
            return Row(name, load, writes() - before)


async def prepared(here: Scene) -> list[str]:
    """A job with its trainer's pod for each; their tokens."""
    tokens = []
    for number in range(TRAINERS):
        pod = await here.stage_pod(await here.job(f"job-{number}"))
        tokens.append(await here.token(pod))
    await here.refresh()
    return tokens


async def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        plane = control_plane.start(Path(folder), audit_log=False, scheduler=False)
        try:
            Kubectl(plane.kubeconfig).install_kinds()
            async with scene(plane) as here:
                tokens = await prepared(here)
                following = asyncio.create_task(follow(here))
                rows = [await measure(here, tokens, f"{TRAINERS} trainers, one a second", 1.0)]
                server.REPORTS_PER_SECOND, server.REPORTS_AT_ONCE = (
                    1e9,
                    10**9,
                )  # the endpoint's own limit, not the pods'
                rows.append(await measure(here, tokens, f"{TRAINERS} trainers, as fast as they can", 0.0))
                following.cancel()
        finally:
            plane.stop()
    sys.stdout.write("\n".join([HEAD, *map(str, rows)]) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
