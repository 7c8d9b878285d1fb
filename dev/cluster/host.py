"""What the node needs of this machine: root, some Debian packages, a network, and nothing left mounted at the end."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from dev.cache import locked
from dev.commands import run, succeeds
from dev.errors import DevError
from dev.progress import step

# What is looked for, and the Debian package that has it.
NEEDED = {
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "catatonit": "catatonit",
    "mmdebstrap": "mmdebstrap",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "openssl": "openssl",
}

# The same for the Dockerfiles where no Docker engine builds them.
NEEDED_TO_BUILD = {"buildah": "buildah"}
# The same for a network that enforces NetworkPolicies, which the node's own does not.
NEEDED_TO_ENFORCE = {"ip": "iproute2", "iptables": "iptables", "ipset": "ipset"}

BRIDGE = "sluice0"
ADDRESS = "10.244.0.1"
PODS = "10.244.0.0/24"
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
BRIDGED_TRAFFIC = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
LOOPBACK_ROUTING = Path("/proc/sys/net/ipv4/conf/all/route_localnet")  # kube-proxy may change it
SETTINGS = (FORWARDING, BRIDGED_TRAFFIC, LOOPBACK_ROUTING)

# kube-proxy makes this chain and leaves it behind, because a kubelet might use it as well. Ours doesn't.
LEFT_BY_KUBE_PROXY = "KUBE-FIREWALL"

# Pods may reach everything beyond this machine, and be reached.
RULES = (
    ("nat", "POSTROUTING", ("-s", PODS, "!", "-d", PODS, "-j", "MASQUERADE")),
    ("filter", "FORWARD", ("-i", BRIDGE, "-j", "ACCEPT")),
    ("filter", "FORWARD", ("-o", BRIDGE, "-j", "ACCEPT")),
)


def must_be_root() -> None:
    """Containers, mounts and networks need it."""
    if os.geteuid() != 0:
        raise DevError(
            "the cluster needs root: run `sudo -E python3 -m dev up`, or start Docker and install kind, "
            "or set SLUICE_KUBECONFIG to the kubeconfig of a cluster that you have"
        )


def install_packages(needed: Mapping[str, str] = NEEDED) -> None:
    """Install the Debian packages that are missing, of those that have the programs which are needed.

    One process at a time: apt refuses a second one.
    """
    with locked("packages"):
        missing = sorted({package for program, package in needed.items() if shutil.which(program) is None})
        if not missing:
            return
        if shutil.which("apt-get") is None:
            raise DevError(f"install these yourself, there is no apt-get here: {', '.join(missing)}")
        step(f"installing {', '.join(missing)} ...")
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        run(["apt-get", "update", "--quiet"], env=quiet)
        run(["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *missing], env=quiet)


def network_up(state: Path) -> None:
    """Make the bridge that pods hang on and that the API server, the kubelet and DNS listen on."""
    if not BRIDGED_TRAFFIC.exists():
        run(["modprobe", "br_netfilter"])
    _settings_before(state).write_text(json.dumps({str(file): file.read_text() for file in SETTINGS}))
    FORWARDING.write_text("1")
    BRIDGED_TRAFFIC.write_text("1")  # or a pod's answer to its neighbour would bypass the Service's translation
    run(["ip", "link", "add", BRIDGE, "type", "bridge"])
    run(["ip", "address", "add", f"{ADDRESS}/24", "dev", BRIDGE])
    run(["ip", "link", "set", BRIDGE, "up"])
    for table, chain, rule in RULES:
        run(["iptables", "-w", "-t", table, "-A", chain, *rule])


def network_down(state: Path) -> None:
    """Remove what `network_up` has made, whatever of it is there."""
    for table, chain, rule in RULES:
        while succeeds(["iptables", "-w", "-t", table, "-D", chain, *rule]):
            pass
    if Path(f"/sys/class/net/{BRIDGE}").exists():
        run(["ip", "link", "delete", BRIDGE])
    for chain in ("INPUT", "OUTPUT"):
        succeeds(["iptables", "-w", "-D", chain, "-j", LEFT_BY_KUBE_PROXY])
    for action in ("-F", "-X"):
        succeeds(["iptables", "-w", action, LEFT_BY_KUBE_PROXY])
    before = _settings_before(state)
    if before.exists():
        for file, value in json.loads(before.read_text()).items():
            Path(file).write_text(value)
        before.unlink()


def unmount_below(folder: Path) -> None:
    """Unmount everything under a folder, the latest first."""
    for mounted in reversed(_mounts_below(folder)):
        run(["umount", "--lazy", mounted])


def remove(folder: Path) -> None:
    """Remove a state folder; refused while anything is mounted under it, since that would be emptied as well."""
    left = _mounts_below(folder)
    if left:
        raise DevError(f"still mounted, so {folder} stays: {', '.join(left)}")
    run(["rm", "-rf", "--one-file-system", folder])


def _settings_before(state: Path) -> Path:
    return state / "kernel-settings.before.json"


def _mounts_below(folder: Path) -> list[str]:
    mounts = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    points = [point.encode().decode("unicode_escape") for point in mounts]
    return [point for point in points if point.startswith(f"{folder}/")]
