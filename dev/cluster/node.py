"""The one node of the cluster: containerd with runc, the kubelet, kube-proxy, and DNS as a program beside them."""

import contextlib
import hashlib
import json
import os
import signal
from pathlib import Path

from dev.cluster import binaries, host
from dev.cluster.control_plane import ControlPlane
from dev.cluster.images import PAUSE
from dev.cluster.kubectl import Kubectl
from dev.cluster.processes import Processes
from dev.cluster.waiting import wait_until
from dev.commands import run, succeeds

NAME = "sluice"
FAKE_GPU_LABEL = "sluice.dev/fake-gpu=true"
READY_WITHIN = 90
PODS_PER_NODE = 200

NAMESERVERS = Path("/etc/resolv.conf")
CONTAINER_LOG_LINKS = Path("/var/log/containers")
SHIM_SOCKETS = Path("/run/containerd/s")
NETWORK_RESULTS = Path("/var/lib/cni/results")

CONTAINERD = """\
version = 3
root = "{state}/containerd/root"
state = "{state}/containerd/state"
oom_score = 0

[grpc]
address = "{state}/containerd.sock"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{pause}"

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "{state}/cni"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{state}/runc-wrapper"
Root = "{state}/runc"
SystemdCgroup = false

[plugins."io.containerd.internal.v1.opt"]
path = "{state}/containerd/opt"

[plugins."io.containerd.nri.v1.nri"]
disable = true
"""

CORE_DNS = """\
.:53 {{
    bind {address}
    errors
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {kubeconfig}
    }}
    {beyond}
    cache 5
}}
"""


def start_containerd(state: Path, processes: Processes) -> None:
    """Start containerd, and return when it answers."""
    _write_runc_wrapper(state)
    _write_network(state)
    config = state / "containerd.toml"
    config.write_text(CONTAINERD.format(state=state, pause=PAUSE))
    programs = binaries.CONTAINERS
    processes.start("containerd", [programs.path("containerd"), f"--config={config}"], path=programs.folder)
    wait_until("containerd answers", lambda: succeeds([*_ctr(state), "version"]), processes, READY_WITHIN)


def load_images(state: Path, archive: Path) -> None:
    """Put the images of an OCI archive into the node."""
    run([*_ctr(state), "images", "import", "--local", archive])


def start(state: Path, plane: ControlPlane, processes: Processes) -> None:
    """Start the rest of the node beside a running containerd, and return when it is Ready."""
    _start_dns(state, plane, processes)
    _start_kubelet(state, plane, processes)
    _start_kube_proxy(state, plane, processes)
    kubectl = Kubectl(plane.kubeconfig)
    wait_until("the node is Ready", lambda: kubectl.node_is_ready(NAME), processes, READY_WITHIN)


def clean_up(state: Path) -> None:
    """Remove what is left of the node when its programs have ended: containers, shims, mounts, rules, links."""
    for container in sorted((state / "runc" / "k8s.io").glob("*")):
        succeeds(["runc", "--root", container.parent, "delete", "--force", container.name])
        (NETWORK_RESULTS / f"cni-loopback-{container.name}-lo").unlink(missing_ok=True)
    _kill_shims(state)
    _remove_empty_cgroups()
    host.unmount_below(state)
    if binaries.NODE.folder.exists():
        succeeds([binaries.NODE.path("kube-proxy"), "--cleanup"])
    host.network_down(state)
    for link in CONTAINER_LOG_LINKS.glob("*.log"):
        if link.is_symlink() and str(link.readlink()).startswith(f"{state}/"):
            link.unlink()
    for result in NETWORK_RESULTS.glob(f"{NAME}-*"):
        result.unlink()


def _start_dns(state: Path, plane: ControlPlane, processes: Processes) -> None:
    knows_others = any(line.startswith("nameserver") for line in NAMESERVERS.read_text().splitlines())
    beyond = f"forward . {NAMESERVERS}" if knows_others else ""
    file = state / "Corefile"
    file.write_text(CORE_DNS.format(address=host.ADDRESS, kubeconfig=plane.kubeconfig, beyond=beyond))
    processes.start("coredns", [binaries.CLUSTER_DNS.path("coredns"), "-conf", file])


def _start_kubelet(state: Path, plane: ControlPlane, processes: Processes) -> None:
    authority = plane.authority
    client = authority.client(f"system:node:{NAME}", "system:nodes")
    kubeconfig = authority.kubeconfig(state / "kubelet.kubeconfig", plane.server, client)
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": host.ADDRESS,
        "healthzPort": 0,
        "authentication": {"x509": {"clientCAFile": str(authority.pair.certificate)}},
        "containerRuntimeEndpoint": f"unix://{state}/containerd.sock",
        "clusterDNS": [host.ADDRESS],
        "clusterDomain": "cluster.local",
        "podLogsDir": str(state / "pod-logs"),
        "volumePluginDir": str(state / "volume-plugins"),
        "maxPods": PODS_PER_NODE,
        # Machines like this one: old or mixed cgroups, no systemd, a swap file, a disk shared with other work.
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "makeIPTablesUtilChains": False,
        "oomScoreAdj": 0,
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
    }
    file = state / "kubelet.json"
    file.write_text(json.dumps(config, indent=1))
    processes.start(
        "kubelet",
        [
            binaries.NODE.path("kubelet"),
            f"--config={file}",
            f"--kubeconfig={kubeconfig}",
            f"--root-dir={state / 'kubelet'}",
            f"--cert-dir={state / 'kubelet-certificates'}",
            f"--hostname-override={NAME}",
            f"--node-ip={host.ADDRESS}",
            f"--node-labels={FAKE_GPU_LABEL}",
        ],
        path=binaries.CONTAINERS.folder,
    )


def _start_kube_proxy(state: Path, plane: ControlPlane, processes: Processes) -> None:
    client = plane.authority.client("system:kube-proxy")
    kubeconfig = plane.authority.kubeconfig(state / "kube-proxy.kubeconfig", plane.server, client)
    config = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "hostnameOverride": NAME,
        "healthzBindAddress": f"{host.ADDRESS}:10256",
        "metricsBindAddress": f"{host.ADDRESS}:10249",
        "clusterCIDR": host.PODS,
        "mode": "iptables",
        "conntrack": {"maxPerCore": 0, "min": 0},
        "oomScoreAdj": 0,
    }
    file = state / "kube-proxy.json"
    file.write_text(json.dumps(config, indent=1))
    processes.start("kube-proxy", [binaries.NODE.path("kube-proxy"), f"--config={file}"])


def _write_runc_wrapper(state: Path) -> None:
    wrapper = state / "runc-wrapper"
    source = Path(__file__).with_name("runc_wrapper.py").read_text()
    wrapper.write_text(f"#!/usr/bin/python3 -IS\n{source}")
    wrapper.chmod(0o755)


def _write_network(state: Path) -> None:
    network = {
        "cniVersion": "1.0.0",
        "name": NAME,
        "plugins": [
            {
                "type": "bridge",
                "bridge": host.BRIDGE,
                "isGateway": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(state / "addresses"),
                    "ranges": [[{"subnet": host.PODS, "gateway": host.ADDRESS}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }
        ],
    }
    (state / "cni").mkdir(exist_ok=True)
    (state / "cni" / "10-sluice.conflist").write_text(json.dumps(network, indent=1))


def _kill_shims(state: Path) -> None:
    """Each pod has a shim that outlives containerd; ours are known by their program and the socket they were given."""
    program, socket = binaries.CONTAINERS.path("containerd-shim-runc-v2"), f"{state}/containerd.sock"
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, PermissionError, ProcessLookupError):
            given = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if socket in given and (process / "exe").readlink() == program:
                os.kill(int(process.name), signal.SIGKILL)
                _shim_socket(socket, given[given.index("-id") + 1]).unlink(missing_ok=True)


def _shim_socket(containerd: str, pod: str) -> Path:
    """Where a shim listens: containerd names its sockets so because a socket's path can't be long."""
    return SHIM_SOCKETS / hashlib.sha256(f"{containerd}/k8s.io/{pod}".encode()).hexdigest()


def _remove_empty_cgroups() -> None:
    """The parent of our containers' groups, under each cgroup controller; one that is in use can't be removed."""
    for group in Path("/sys/fs/cgroup").glob("**/k8s.io"):
        with contextlib.suppress(OSError):
            group.rmdir()


def _ctr(state: Path) -> list[str | Path]:
    return [binaries.CONTAINERS.path("ctr"), "--address", state / "containerd.sock", "--namespace", "k8s.io"]
