"""A control plane of its own whose etcd is restored from a backup, and whose certificates are of a new authority."""

import asyncio
import os
import shutil
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from dev.cluster import binaries
from dev.cluster import control_plane as dev_control_plane
from dev.cluster.certificates import Authority
from dev.cluster.control_plane import ADMIN, ControlPlane
from dev.cluster.processes import Processes
from dev.cluster.waiting import wait_until
from dev.commands import run
from sluice_api.meta import API_VERSION
from tests.integration.kubectl import Kubectl
from tests.integration.nodes import MERGE_PATCH, Nodes, add_volume
from tests.integration.progress_scene import Kube
from tests.integration.running_operator import RunningOperator
from tests.integration.test_terms import until_probed

pytestmark = pytest.mark.integration

IN_SOAK = pytest.mark.skipif(
    "SLUICE_RESTORES" not in os.environ, reason="make soak: the store is emptied, and lists anew"
)

TEAM = "team"
ENGINES = f"/apis/{API_VERSION}/namespaces/{TEAM}/inferenceengines"
SLOTS = f"/apis/apps/v1/namespaces/{TEAM}/deployments"
RAISED_BY = 10**9
LIMITS: dict[str, object] = {"lease_seconds": 3, "resync_seconds": 2, "unreachable_seconds": 20}


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    """With our custom resources, and nobody else's tests."""
    made = dev_control_plane.start(tmp_path / "plane", audit_log=False)
    try:
        admin = Kubectl(made.kubeconfig)
        admin.install_kinds()
        admin.must("create", "namespace", TEAM)
        yield made
    finally:
        made.stop()


@pytest.fixture
def start(plane: ControlPlane, tmp_path: Path) -> Iterator[Callable[[str, Path], RunningOperator]]:
    """Start an operator with a kubeconfig."""
    started: list[RunningOperator] = []

    def begin(name: str, kubeconfig: Path) -> RunningOperator:
        started.append(RunningOperator.start(tmp_path, name, kubeconfig, TEAM, LIMITS))
        return started[-1]

    yield begin
    for operator in started:
        operator.end()


@asynccontextmanager
async def administrator(plane: ControlPlane, authority: Authority | None = None) -> AsyncIterator[Kube]:
    """The API server by its own paths, trusted by the certificate of an authority."""
    trust = ssl.create_default_context(cafile=str((authority or plane.authority).pair.certificate))
    admin = plane.authority.named(ADMIN)
    trust.load_cert_chain(admin.certificate, admin.key)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as session:
        yield Kube(plane.server, session)


async def engine(kube: Kube) -> None:
    """Two replicas, and a node and a model for them."""
    await Nodes(kube).add("n1", gpus=2)
    await add_volume(kube, TEAM, "models")
    spec = {"model": {"uri": "pvc://models/tiny"}, "replicas": 2, "resources": {"memory": "100Mi", "cpu": "10m"}}
    body = {"apiVersion": API_VERSION, "kind": "InferenceEngine", "metadata": {"name": "chat"}, "spec": spec}
    await kube.call("POST", ENGINES, body)


async def slots(kube: Kube) -> dict[str, int]:
    """The size of each slot that is there."""
    found = (await kube.call("GET", SLOTS))["items"]
    return {slot["metadata"]["name"]: slot["spec"]["replicas"] for slot in found}


async def until_there_are(kube: Kube, expected: dict[str, int], within: float = 40) -> None:
    """A watch would not live through a restore."""
    try:
        async with asyncio.timeout(within):
            while await slots(kube) != expected:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise AssertionError(f"{await slots(kube)} in place of {expected}") from None


def back_up(plane: ControlPlane, backup: Path) -> None:
    """What etcd has now: its folder, while it does not run."""
    processes = Processes(plane.state)
    processes.restart("etcd", lambda: _copy(plane.state / "etcd", backup))
    wait_until("the API server is back", plane.ready, processes, 60)


def _copy(folder: Path, to: Path) -> None:
    shutil.copytree(folder, to)


def restore(plane: ControlPlane, backup: Path, operator: RunningOperator, *, raised: bool) -> None:
    """As the documentation of Kubernetes says: stop the API servers, restore, start, and start all others anew.

    It takes until the operator leads no more.
    """
    processes, data, before = Processes(plane.state), plane.state / "etcd", stepped_down(operator)
    peer = next(word for word in _words(processes, "etcd") if word.startswith("--initial-advertise-peer-urls="))

    def put_back() -> None:
        wait_until("the leader has stepped down", lambda: stepped_down(operator) > before, processes, 60)
        shutil.rmtree(data)
        if not raised:
            _copy(backup, data)
            return
        binaries.build_etcdutl()
        words = ["--bump-revision", str(RAISED_BY), "--mark-compacted", "--skip-hash-check", f"--data-dir={data}"]
        cluster = ["--initial-cluster", f"default={peer.partition('=')[2]}", peer]
        snapshot = backup / "member" / "snap" / "db"
        run([binaries.ETCD_RESTORER.path("etcdutl"), "snapshot", "restore", snapshot, *words, *cluster])

    processes.restart("kube-apiserver", lambda: processes.restart("etcd", put_back))
    wait_until("the API server is back", plane.ready, processes, 60)
    for other in ("kube-controller-manager", "kube-scheduler"):
        processes.restart(other)


def stepped_down(operator: RunningOperator) -> int:
    """How often it has."""
    return sum(len(operator.events(event)) for event in ("no longer leading", "stepping down"))


def _words(processes: Processes, name: str) -> list[str]:
    (pid,) = (process.pid for process in processes if process.name == name)
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]


@pytest.mark.parametrize(
    "raised",
    [pytest.param(False, id="revisions-as-they-were", marks=IN_SOAK), pytest.param(True, id="revisions-raised")],
)
async def test_restored_etcd_backup_replaces_what_was_seen_after_it(
    plane: ControlPlane, start: Callable[[str, Path], RunningOperator], tmp_path: Path, raised: bool
) -> None:
    """The engine had two replicas in the backup and has one since then: it has two again, with its second slot."""
    operator = start("operator-0", plane.kubeconfig)
    both = {"chat-0": 1, "chat-1": 1}
    async with administrator(plane) as kube:
        await engine(kube)
        await until_there_are(kube, both)
        backup = tmp_path / "backup"
        await asyncio.to_thread(back_up, plane, backup)
        await kube.call("PATCH", f"{ENGINES}/chat", {"spec": {"replicas": 1}}, MERGE_PATCH)
        await until_there_are(kube, {"chat-0": 1})
        terms = len(operator.events("leading"))
        await asyncio.to_thread(restore, plane, backup, operator, raised=raised)
    async with administrator(plane) as kube:
        await operator.logged("leading", times=terms + 1)
        await until_there_are(kube, both)
        await kube.call("PATCH", f"{ENGINES}/chat", {"spec": {"replicas": 1}}, MERGE_PATCH)
        await until_there_are(kube, {"chat-0": 1})


async def test_operator_is_restarted_when_the_cluster_ca_is_replaced(
    plane: ControlPlane, start: Callable[[str, Path], RunningOperator], tmp_path: Path
) -> None:
    """It has read whom to trust once. It says that it sees nothing, is not live in the end, and its successor leads."""
    operator = start("operator-0", plane.kubeconfig)
    await operator.leads()
    await until_probed(operator, "readyz", 200)
    fresh = Authority(tmp_path / "fresh")
    fresh.make()
    await asyncio.to_thread(serve_by, plane, fresh)
    await until_probed(operator, "readyz", 503)
    await until_probed(operator, "livez", 503)
    assert "CERTIFICATE_VERIFY_FAILED" in operator.log.read_text()
    operator.kill()  # as the kubelet does then
    admin = plane.authority.named(ADMIN)
    successor = start("operator-1", fresh.kubeconfig(tmp_path / "fresh.kubeconfig", plane.server, admin))
    await successor.leads()
    await until_probed(successor, "readyz", 200)
    async with administrator(plane, fresh) as kube:
        await engine(kube)
        await until_there_are(kube, {"chat-0": 1, "chat-1": 1})


def serve_by(plane: ControlPlane, authority: Authority) -> None:
    """Have the API server show a certificate that another authority has signed."""
    fresh, served = authority.serving("kube-apiserver", ["IP:127.0.0.1"]), plane.authority.named("kube-apiserver")

    def exchange() -> None:
        shutil.copy(fresh.certificate, served.certificate)
        shutil.copy(fresh.key, served.key)

    Processes(plane.state).restart("kube-apiserver", exchange)
