"""A Kubernetes control plane without a node: etcd and the API server, and optionally the two that act on it.

The full cluster stands on it, and integration tests start their own: each has its own state folder and free
ports, so that several run side by side.

    plane = control_plane.start(tmp_path)
    ... plane.kubeconfig ...
    plane.stop()
"""

import json
import shutil
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dev.cache import locked
from dev.cluster import binaries
from dev.cluster.certificates import Authority
from dev.cluster.ports import free_port
from dev.cluster.processes import Processes
from dev.cluster.waiting import wait_until
from dev.errors import DevError

SERVICES = "10.96.0.0/16"
KUBERNETES_SERVICE = "10.96.0.1"
ISSUER = "https://kubernetes.default.svc.cluster.local"
ADMIN = "admin"
LOOPBACK = "127.0.0.1"
READY_WITHIN = 60

AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


@dataclass(frozen=True)
class ControlPlane:
    """A running control plane."""

    state: Path
    server: str

    @property
    def authority(self) -> Authority:
        """Who signs its certificates."""
        return Authority(self.state / "certificates")

    @property
    def kubeconfig(self) -> Path:
        """The kubeconfig of its administrator."""
        return self.state / "kubeconfig"

    @classmethod
    def opened(cls, state_dir: Path) -> "ControlPlane":
        """The one that an earlier command has started in this folder."""
        state = state_dir.resolve()
        kubeconfig = state / "kubeconfig"
        if not kubeconfig.exists():
            raise DevError(f"no control plane was started in {state}")
        return cls(state, json.loads(kubeconfig.read_text())["clusters"][0]["cluster"]["server"])

    @property
    def audit_log(self) -> Path:
        """One JSON line for each request that was answered, if the audit log is on."""
        return self.state / "audit.log"

    def healthy(self) -> bool:
        """Whether all its programs run and the API server says that it is ready."""
        processes = tuple(Processes(self.state))
        return bool(processes) and all(process.running for process in processes) and self.ready()

    def ready(self) -> bool:
        """Whether the API server says that it is ready."""
        return _answers(f"{self.server}/readyz", self.authority)

    def stop(self) -> None:
        """End its programs; the state folder stays, for its logs."""
        Processes(self.state).stop()


def start(
    state_dir: Path,
    *,
    audit_log: bool = True,
    controller_manager: bool = True,
    scheduler: bool = True,
    address: str = LOOPBACK,
    nodes_send_heartbeats: bool = False,
) -> ControlPlane:
    """Start a control plane, empty, and return when it answers.

    Without real nodes, nobody renews a node's lease: `nodes_send_heartbeats=False` leaves a node that a test has
    made Ready as it is, instead of tainting it after 50 s. Service accounts are there when the default namespace
    has its own (only with a controller manager).
    """
    binaries.build_control_plane()
    state = state_dir.resolve()
    if any(process.running for process in Processes(state)):
        raise DevError(f"a control plane runs in {state} already: stop it first")
    for earlier in ("etcd", "logs"):
        shutil.rmtree(state / earlier, ignore_errors=True)
    for earlier in ("audit.log", "processes.json"):
        (state / earlier).unlink(missing_ok=True)
    authority = Authority(state / "certificates")
    authority.make()
    processes = Processes(state)
    try:
        with (
            _reserved_port(LOOPBACK) as clients,
            _reserved_port(LOOPBACK) as peers,
            _reserved_port(address) as requests,
        ):
            plane = ControlPlane(state, f"https://{address}:{requests}")
            authority.kubeconfig(plane.kubeconfig, plane.server, authority.client(ADMIN, "system:masters"))
            etcd = _start_etcd(plane, processes, clients, peers)
            _start_api_server(plane, processes, etcd, audit_log=audit_log)
            wait_until("the API server is ready", plane.ready, processes, READY_WITHIN)
        if controller_manager:
            _start_controller_manager(plane, processes, nodes_send_heartbeats=nodes_send_heartbeats)
        if scheduler:
            _start_scheduler(plane, processes)
        if controller_manager:
            account = f"{plane.server}/api/v1/namespaces/default/serviceaccounts/default"
            wait_until("the controllers work", lambda: _answers(account, authority), processes, READY_WITHIN)
    except BaseException:
        processes.stop()
        raise
    return plane


def _start_etcd(plane: ControlPlane, processes: Processes, client_port: int, peer_port: int) -> str:
    clients, peers = (f"http://{LOOPBACK}:{port}" for port in (client_port, peer_port))
    processes.start(
        "etcd",
        [
            binaries.ETCD_SERVER.path("etcd"),
            f"--data-dir={plane.state / 'etcd'}",
            "--unsafe-no-fsync",  # a crash of the machine may cost this cluster its state; every write is quicker
            f"--listen-client-urls={clients}",
            f"--advertise-client-urls={clients}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
            "--socket-reuse-port",
            "--log-level=warn",
        ],
    )
    return clients


def _start_api_server(plane: ControlPlane, processes: Processes, etcd: str, *, audit_log: bool) -> None:
    authority = plane.authority
    address, _, port = plane.server.removeprefix("https://").partition(":")
    serving = authority.serving(
        "kube-apiserver",
        [f"IP:{ip}" for ip in dict.fromkeys((LOOPBACK, address, KUBERNETES_SERVICE))]
        + [f"DNS:kubernetes{rest}" for rest in ("", ".default", ".default.svc", ".default.svc.cluster.local")]
        + ["DNS:localhost"],
    )
    to_kubelet = authority.client("kube-apiserver-kubelet-client", "system:masters")
    tokens = authority.key_pair("service-account")
    audit: list[str] = []
    if audit_log:
        policy = plane.state / "audit-policy.json"
        policy.write_text(json.dumps(AUDIT_POLICY))
        # In MiB: it would begin anew at 100, and whoever reads it from a place on would find nothing.
        largest = "--audit-log-maxsize=1000000"
        audit = [f"--audit-policy-file={policy}", f"--audit-log-path={plane.audit_log}", largest]
    # A loopback address can't be the endpoint of a Service.
    endpoint = ["--endpoint-reconciler-type=none"] if address == LOOPBACK else []
    processes.start(
        "kube-apiserver",
        [
            binaries.CONTROL_PLANE.path("kube-apiserver"),
            f"--etcd-servers={etcd}",
            f"--bind-address={address}",
            f"--advertise-address={address}",
            f"--secure-port={port}",
            "--permit-port-sharing",
            f"--service-cluster-ip-range={SERVICES}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            f"--client-ca-file={authority.pair.certificate}",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--kubelet-client-certificate={to_kubelet.certificate}",
            f"--kubelet-client-key={to_kubelet.key}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={tokens.certificate}",
            f"--service-account-signing-key-file={tokens.key}",
            *endpoint,
            *audit,
        ],
    )


def _start_controller_manager(plane: ControlPlane, processes: Processes, *, nodes_send_heartbeats: bool) -> None:
    authority = plane.authority
    client = authority.client("system:kube-controller-manager")
    kubeconfig = authority.kubeconfig(plane.state / "kube-controller-manager.kubeconfig", plane.server, client)
    processes.start(
        "kube-controller-manager",
        [
            binaries.CONTROL_PLANE.path("kube-controller-manager"),
            f"--kubeconfig={kubeconfig}",
            "--secure-port=0",
            "--leader-elect=false",
            "--use-service-account-credentials",
            f"--root-ca-file={authority.pair.certificate}",
            f"--service-account-private-key-file={plane.state / 'certificates' / 'service-account.key'}",
            f"--cluster-signing-cert-file={authority.pair.certificate}",
            f"--cluster-signing-key-file={authority.pair.key}",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
            "--concurrent-gc-syncs=20",
            "--concurrent-deployment-syncs=20",
            "--concurrent-replicaset-syncs=20",
            "--concurrent-job-syncs=20",
            "--horizontal-pod-autoscaler-sync-period=2s",
            *([] if nodes_send_heartbeats else ["--node-monitor-grace-period=24h"]),
        ],
    )


def _start_scheduler(plane: ControlPlane, processes: Processes) -> None:
    authority = plane.authority
    client = authority.client("system:kube-scheduler")
    kubeconfig = authority.kubeconfig(plane.state / "kube-scheduler.kubeconfig", plane.server, client)
    processes.start(
        "kube-scheduler",
        [
            binaries.CONTROL_PLANE.path("kube-scheduler"),
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            "--secure-port=0",
            "--leader-elect=false",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
        ],
    )


@contextmanager
def _reserved_port(address: str) -> Iterator[int]:
    """A port on which nobody listens, and which nobody else chooses while our server is on its way to it.

    It is held by a socket that only a server started with "reuse port" may bind beside.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with locked("ports"):
            port = free_port(address)
            held.bind((address, port))
        yield port


def _answers(url: str, authority: Authority) -> bool:
    """Whether the API server answers its administrator with 200."""
    trust = ssl.create_default_context(cafile=str(authority.pair.certificate))
    admin = authority.named(ADMIN)
    trust.load_cert_chain(admin.certificate, admin.key)
    no_proxy = urllib.request.ProxyHandler({})
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=trust), no_proxy)
    try:
        with opener.open(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False
