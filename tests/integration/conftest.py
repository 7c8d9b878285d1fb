"""A control plane for all tests of a worker, and for each test a namespace, nodes and operators of its own."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from kubernetes.aio import config

from dev.cluster import control_plane as dev_control_plane
from dev.cluster.control_plane import ControlPlane
from dev.cluster.ports import free_port
from dev.faults.proxy import FaultProxy
from sluice_operator.cluster.client import Api
from sluice_operator.settings import Settings
from tests.integration.claim_scene import ClaimScene, claim_scene
from tests.integration.forked import Forked
from tests.integration.kubectl import Kubectl
from tests.integration.nodes import Nodes
from tests.integration.progress_scene import Kube, make_namespace
from tests.integration.running_operator import Launch, RunningOperator
from tests.integration.tenants import installed

MakeOperator = Callable[..., RunningOperator]


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """etcd, API server, controller manager and scheduler, with our custom resources and priority classes."""
    plane = dev_control_plane.start(tmp_path_factory.mktemp("plane"))
    try:
        Kubectl(plane.kubeconfig).install_kinds()
        yield plane
    finally:
        plane.stop()


@pytest.fixture(scope="module", params=[True, False], ids=["with the policy", "without it"])
def policy(control_plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the chart's admission policy is installed; its accounts and roles are."""
    with installed(control_plane, policy=request.param):
        yield request.param


@pytest_asyncio.fixture
async def api(control_plane: ControlPlane) -> AsyncIterator[Api]:
    """The API server as the operator's own code sees it."""
    client = await config.new_client_from_config(str(control_plane.kubeconfig))
    yield Api(client)
    await client.close()


@pytest_asyncio.fixture
async def kube(control_plane: ControlPlane) -> AsyncIterator[Kube]:
    """The API server by its own paths, as an administrator."""
    client = await config.new_client_from_config(str(control_plane.kubeconfig))
    tls = aiohttp.TCPConnector(ssl=client.rest_client.ssl_context)
    async with aiohttp.ClientSession(connector=tls) as session:
        yield Kube(control_plane.server, session)
    await client.close()


@pytest_asyncio.fixture
async def namespace(kube: Kube, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """A new namespace, deleted after the test."""
    name = f"t-{abs(hash(request.node.nodeid)) % 10**8}-{free_port()}"
    await make_namespace(kube, name)
    yield name
    await kube.call("DELETE", f"/api/v1/namespaces/{name}")


@pytest_asyncio.fixture
async def nodes(kube: Kube) -> AsyncIterator[Nodes]:
    """Nodes without a kubelet: the real scheduler binds pods to them, and a test says what the pods do."""
    made = Nodes(kube)
    yield made
    await made.remove_all()


@pytest_asyncio.fixture
async def scene(control_plane: ControlPlane, kube: Kube, namespace: str) -> AsyncIterator[ClaimScene]:
    """A namespace in which the whole claim cycle happens."""
    async with claim_scene(control_plane, kube, namespace) as made:
        yield made


@pytest_asyncio.fixture
async def proxy(control_plane: ControlPlane) -> AsyncIterator[FaultProxy]:
    """A proxy in front of the API server: what goes wrong is what a test says by its rules."""
    async with FaultProxy.between(control_plane) as running:
        yield running


@pytest_asyncio.fixture
async def operator(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> AsyncIterator[MakeOperator]:
    """Start operators as processes of their own; as many as a test likes, all ended after it.

    Options: `kubeconfig` for another way to the API server, `launch` for another way to start the process, anything
    else a SLUICE_ variable in lower case.
    """
    async with AsyncExitStack() as stack:

        def start(
            name: str = "operator-0",
            kubeconfig: Path | None = None,
            launch: Launch = Forked.start,
            **settings: object,
        ) -> RunningOperator:
            plane = kubeconfig or control_plane.kubeconfig
            running = RunningOperator.start(tmp_path, name, plane, namespace, settings, launch=launch)
            stack.push_async_callback(asyncio.to_thread, running.end)
            return running

        yield start


@pytest.fixture
def operator_settings(namespace: str) -> Settings:
    """Settings for parts of the operator that a test runs in its own process."""
    return Settings(
        namespace=namespace,
        pod_name="operator-in-test",
        report_url="http://127.0.0.1:1",
        trainer_image="nothing",
        server_image="nothing",
        watch_namespaces=(namespace,),
    )
