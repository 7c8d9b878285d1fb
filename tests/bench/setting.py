"""What every benchmark starts from: a control plane of its own, a namespace in it, and the operator as a process."""

import asyncio
import re
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from urllib.request import urlopen

import aiohttp
from kubernetes.aio import config

from dev.cluster import control_plane
from dev.cluster.control_plane import ControlPlane
from tests.integration.claim_scene import ClaimScene, claim_scene
from tests.integration.kubectl import Kubectl
from tests.integration.nodes import Nodes
from tests.integration.progress_scene import Kube, has_account
from tests.integration.running_operator import RunningOperator, in_a_new_interpreter

NAMESPACE = "bench"
QUIET_SECONDS = 20
"""Under load an operator of 10,000 jobs has paused for more than five seconds between two writes."""


@dataclass
class Bare:
    """A control plane, and the operator as a process."""

    plane: ControlPlane
    kube: Kube
    nodes: Nodes
    start: Callable[..., RunningOperator]


@dataclass
class Setting(Bare):
    """The same with a namespace, and a kubelet in it."""

    scene: ClaimScene


@asynccontextmanager
async def bare(*, controllers: bool = False) -> AsyncIterator[Bare]:
    """etcd, the API server and our kinds; `controllers`: with those that act by themselves, and an audit log."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plane = control_plane.start(
            folder / "plane", audit_log=controllers, controller_manager=controllers, scheduler=controllers
        )
        stack.callback(plane.stop)
        admin = Kubectl(plane.kubeconfig)
        admin.install_kinds()
        admin.must("create", "namespace", NAMESPACE)
        client = await config.new_client_from_config(str(plane.kubeconfig))
        stack.push_async_callback(client.close)
        tls = aiohttp.TCPConnector(ssl=client.rest_client.ssl_context)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=tls))
        kube = Kube(plane.server, session)

        def start(**settings: object) -> RunningOperator:
            running = RunningOperator.start(
                folder, "operator", plane.kubeconfig, NAMESPACE, settings, launch=in_a_new_interpreter
            )
            stack.callback(running.end)
            return running

        yield Bare(plane, kube, Nodes(kube), start)


@asynccontextmanager
async def setting() -> AsyncIterator[Setting]:
    """Everything up; all of it ends with the block."""
    async with bare(controllers=True) as here:
        await has_account(here.kube, NAMESPACE)
        async with claim_scene(here.plane, here.kube, NAMESPACE) as scene:
            yield Setting(here.plane, here.kube, here.nodes, here.start, scene)


def milliseconds(name: str, seconds: Iterable[float]) -> str:
    """One line of a table: p50, p99, least, most and how many."""
    values = sorted(value * 1000 for value in seconds)
    cuts = quantiles(values, n=100, method="inclusive")
    return f"{name:<44}{cuts[49]:>8.0f}{cuts[98]:>8.0f}{values[0]:>8.0f}{values[-1]:>8.0f}{len(values):>7}"


HEAD = f"{'milliseconds':<44}{'p50':>8}{'p99':>8}{'least':>8}{'most':>8}{'count':>7}"


def counted(operator: RunningOperator, metric: str) -> float:
    """The sum of an operator's metric over all its labels."""
    lines = _metrics(operator).splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{metric}{{", f"{metric} ")))


def _metrics(operator: RunningOperator) -> str:
    with urlopen(f"http://127.0.0.1:{operator.metrics_port}/metrics", timeout=60) as page:
        return str(page.read().decode())


def writes_by_verb(operator: RunningOperator) -> Counter[str]:
    """How often an operator has written, by what it did."""
    found: Counter[str] = Counter()
    for labels, value in re.findall(r"^sluice_api_writes_total\{(.*)\} (\S+)$", _metrics(operator), re.MULTILINE):
        verb, kind = (re.search(f'{name}="(.*?)"', labels) for name in ("verb", "kind"))
        if verb and kind:
            found[f"{verb[1]} {kind[1]}"] += int(float(value))
    return found


def resident(operator: RunningOperator, most: bool = False) -> int:
    """Its memory in MiB: now, or the most that it ever had."""
    lines = Path(f"/proc/{operator.process.pid}/status").read_text().splitlines()
    name = "VmHWM" if most else "VmRSS"
    return int(next(line.split()[1] for line in lines if line.startswith(name))) // 1024


def cpu_seconds(operator: RunningOperator) -> float:
    """Its time on a processor."""
    return cpu_of(operator.process.pid)


def cpu_of(pid: int) -> float:
    """A process's time on a processor."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def settled(operator: RunningOperator) -> float:
    """Wait until nothing has been written for a while; when the last write was."""
    writes, last = -1.0, time.monotonic()
    while time.monotonic() < last + QUIET_SECONDS:
        now = await asyncio.to_thread(counted, operator, "sluice_api_writes_total")
        if now != writes:
            writes, last = now, time.monotonic()
        await asyncio.sleep(0.5)
    return last
