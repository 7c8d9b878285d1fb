"""kopf's watches as the operator adapts them, compared with watches that use kopf's public names only.

Three arms run one after another, several times, on the same 10,000 jobs with their nodes, engines, Jobs and pods.
`adapted` is the operator as it is (`handlers/kopf_watch.py`). `public` has `kopf.on.event` handlers that put each
object into the same store, and kopf's settings as they are. `tuned` is the same with workers that end after 0.1 s,
not 5 s, and without kopf's diffs. At each start everything is as it should be. Then 2,000 jobs are annotated as fast
as the API server takes it, and 2,000 more while the process is stopped, which shows how fast it catches up.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import median

from tests.bench.bench_operator import PATIENCE, populate, starts
from tests.bench.kopf_arms import ARMS, TAKEN
from tests.bench.setting import NAMESPACE, Setting, cpu_seconds, resident, setting, settled
from tests.integration.nodes import MERGE_PATCH
from tests.integration.running_operator import ROOT, RunningOperator

JOBS = int(os.environ.get("SLUICE_BENCH_JOBS", "10000"))
ROUNDS = int(os.environ.get("SLUICE_BENCH_ROUNDS", "3"))
PATCHED = min(2000, JOBS // 2)
AT_ONCE = 16
QUIET_SHARE, QUIET_SECONDS = 0.25, 5


@dataclass
class Found:
    """Figures of one start."""

    pool_decided: float
    jobs_decided: float
    cpu: float
    memory: int
    most: int
    live_rate: float
    live_cpu: float
    caught_up_rate: float
    caught_up_cpu: float
    memory_after: int
    ends: float


NAMES = {
    "pool_decided": ("to the first decision, s", "{:.1f}"),
    "jobs_decided": ("to all jobs decided, s", "{:.1f}"),
    "cpu": ("processor time until quiet, s", "{:.1f}"),
    "memory": ("resident when quiet, MiB", "{:.0f}"),
    "most": ("most resident until then, MiB", "{:.0f}"),
    "live_rate": ("live: events a second", "{:.0f}"),
    "live_cpu": ("live: processor time, ms an event", "{:.2f}"),
    "caught_up_rate": ("catching up: events a second", "{:.0f}"),
    "caught_up_cpu": ("catching up: processor time, ms an event", "{:.2f}"),
    "memory_after": ("resident after that, MiB", "{:.0f}"),
    "ends": ("from SIGTERM to the end, s", "{:.1f}"),
}


@dataclass
class Arm:
    """One process."""

    operator: RunningOperator
    marks: Path
    began: float

    @classmethod
    def start(cls, here: Setting, folder: Path, name: str) -> "Arm":
        marks = Path(tempfile.mkdtemp(dir=folder)) / "marks"

        def launch(words: Sequence[str], environment: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
            command = [sys.executable, "-m", "tests.bench.kopf_arms", name, str(marks), str(JOBS)]
            paths = os.pathsep.join(str(ROOT / part) for part in ("operator", "trainer_image", "server_image", ""))
            with log.open("wb") as file:
                return subprocess.Popen(command, stdout=file, stderr=file, env={**environment, "PYTHONPATH": paths})

        settings: dict[str, object] = {"stage_start_deadline_seconds": 24 * 3600}
        began = time.monotonic()
        operator = RunningOperator.start(folder, "operator", here.plane.kubeconfig, NAMESPACE, settings, launch=launch)
        return cls(operator, marks, began)

    async def mark(self, name: str, within: float = 300) -> float:
        """Seconds from the start to a moment."""
        async with asyncio.timeout(within):
            while True:
                assert self.operator.process.poll() is None, self.operator.log.read_text()[-3000:]
                if self.marks.exists():
                    for line in self.marks.read_text().splitlines():
                        if line.startswith(f"{name} "):
                            return float(line.split()[1]) - self.began
                await asyncio.sleep(0.05)

    def taken(self) -> tuple[int, float]:
        """How many events of jobs the store has taken so far, and when the last."""
        count, at = TAKEN.unpack(self.marks.with_name("marks.taken").read_bytes())
        return int(count), float(at)

    async def until_taken(self, count: int, within: float = 120) -> float:
        """When the store had taken so many."""
        async with asyncio.timeout(within):
            while self.taken()[0] < count:  # noqa: ASYNC110 - a file is to be looked at
                await asyncio.sleep(0.005)
        return self.taken()[1]

    async def quiet(self) -> None:
        """Wait until it has computed next to nothing for a while."""
        while True:
            before = cpu_seconds(self.operator)
            await asyncio.sleep(QUIET_SECONDS)
            if cpu_seconds(self.operator) - before < QUIET_SHARE * QUIET_SECONDS:
                return


async def annotate(here: Setting, names: Sequence[str], value: str) -> None:
    """Patch jobs, some at a time."""
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> None:
        async with limit:
            body = {"metadata": {"annotations": {"bench": value}}}
            await here.kube.call("PATCH", here.scene.path("finetunejobs", name), body, MERGE_PATCH)

    await asyncio.gather(*(one(name) for name in names))


async def measure(here: Setting, folder: Path, name: str, jobs: Sequence[str]) -> Found:
    """One start of one arm."""
    arm = Arm.start(here, folder, name)
    pool, all_jobs = await arm.mark("pool"), await arm.mark("jobs")
    await arm.quiet()
    cpu, memory, most = cpu_seconds(arm.operator), resident(arm.operator), resident(arm.operator, most=True)

    async def burst(value: str, stopped: bool) -> tuple[float, float]:
        before, spent = arm.taken()[0], cpu_seconds(arm.operator)
        if stopped:
            arm.operator.pause()
            await annotate(here, jobs[:PATCHED], value)
            began = time.monotonic()
            arm.operator.wake()
        else:
            began = time.monotonic()
            await annotate(here, jobs[:PATCHED], value)
        ended = await arm.until_taken(before + PATCHED)
        await arm.quiet()
        return PATCHED / (ended - began), 1000 * (cpu_seconds(arm.operator) - spent) / PATCHED

    live_rate, live_cpu = await burst(f"{arm.marks.parent.name} live", stopped=False)
    caught_up_rate, caught_up_cpu = await burst(f"{arm.marks.parent.name} stopped", stopped=True)
    after, began = resident(arm.operator), time.monotonic()
    assert await asyncio.to_thread(arm.operator.end) == 0, arm.operator.log.read_text()[-3000:]
    ends = time.monotonic() - began
    return Found(
        pool, all_jobs, cpu, memory, most, live_rate, live_cpu, caught_up_rate, caught_up_cpu, after, ends,
    )  # fmt: skip


async def measure_all() -> dict[str, list[Found]]:
    """Every arm as often as there are rounds."""
    found: dict[str, list[Found]] = {name: [] for name in ARMS}
    async with setting() as here:
        here.scene.history.patience = PATIENCE
        await populate(here, JOBS)
        operator, _ = await starts(here)
        await settled(operator)
        operator.end()
        listed = await here.kube.call("GET", here.scene.path("finetunejobs"))
        jobs = [item["metadata"]["name"] for item in listed["items"]]
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(ROUNDS):
                for name in ARMS:
                    one = await measure(here, Path(folder), name, jobs)
                    found[name].append(one)
                    sys.stderr.write(f"{name} {astuple(one)}\n")
    return found


def table(found: Mapping[str, Sequence[Found]]) -> str:
    """A column for each arm: the median, and least to most."""
    lines = [f"{f'{JOBS} jobs, {ROUNDS} starts of each':<44}" + "".join(f"{name:>22}" for name in found)]
    for field in fields(Found):
        name, form = NAMES[field.name]
        cells = []
        for ones in found.values():
            values = sorted(getattr(one, field.name) for one in ones)
            least, middle, most = (form.format(value) for value in (values[0], median(values), values[-1]))
            cells.append(f"{middle} ({least}..{most})")
        lines.append(f"{name:<44}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(line.rstrip() for line in lines) + "\n"


def main() -> None:
    """Print the figures."""
    sys.stdout.write(table(asyncio.run(measure_all())))


if __name__ == "__main__":
    main()
