"""What every benchmark starts from: a control plane of its own, a namespace in it, and the operator as a process."""

import tempfile
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
from tests.integration.progress_scene import Kube, make_namespace
from tests.integration.running_operator import RunningOperator

NAMESPACE = "bench"
PRIORITIES = {"sluice-placeholder": 99, "sluice-inference": 100, "sluice-training": 1000}


@dataclass
class Setting:
    """A control plane, and what a benchmark does with it."""

    plane: ControlPlane
    kube: Kube
    nodes: Nodes
    scene: ClaimScene
    start: Callable[..., RunningOperator]


@asynccontextmanager
async def setting() -> AsyncIterator[Setting]:
    """Everything up; all of it ends with the block."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plane = control_plane.start(folder / "plane")
        stack.callback(plane.stop)
        admin = Kubectl(plane.kubeconfig)
        admin.install_crds()
        for name, value in PRIORITIES.items():
            admin.must("create", "priorityclass", name, f"--value={value}", "--preemption-policy=Never")
        client = await config.new_client_from_config(str(plane.kubeconfig))
        stack.push_async_callback(client.close)
        tls = aiohttp.TCPConnector(ssl=client.rest_client.ssl_context)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=tls))
        kube = Kube(plane.server, session)
        await make_namespace(kube, NAMESPACE)
        scene = await stack.enter_async_context(claim_scene(plane, kube, NAMESPACE))

        def start(**settings: object) -> RunningOperator:
            running = RunningOperator.start(folder, "operator", plane.kubeconfig, NAMESPACE, settings)
            stack.callback(running.end)
            return running

        yield Setting(plane, kube, Nodes(kube), scene, start)


def milliseconds(name: str, seconds: Iterable[float]) -> str:
    """One line of a table: p50, p99, least, most and how many."""
    values = sorted(value * 1000 for value in seconds)
    cuts = quantiles(values, n=100, method="inclusive")
    return f"{name:<44}{cuts[49]:>8.0f}{cuts[98]:>8.0f}{values[0]:>8.0f}{values[-1]:>8.0f}{len(values):>7}"


HEAD = f"{'milliseconds':<44}{'p50':>8}{'p99':>8}{'least':>8}{'most':>8}{'count':>7}"


def counted(operator: RunningOperator, metric: str) -> float:
    """The sum of an operator's metric over all its labels."""
    with urlopen(f"http://127.0.0.1:{operator.metrics_port}/metrics", timeout=60) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{metric}{{", f"{metric} ")))
