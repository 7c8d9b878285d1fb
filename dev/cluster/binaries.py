"""The cluster's programs, built once from Go modules into the cache.

`go install k8s.io/kubernetes/cmd/...` is refused, because that module replaces its staging modules by folders
of its own checkout. A module of ours that depends on it, with the same replacements pointed at the published
staging modules, builds the very same programs.
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dev.cache import cache_folder, made_once
from dev.commands import need, run
from dev.progress import step

KUBERNETES = "1.37.0"
ETCD = "3.7.0"
CONTAINERD = "2.4.2"
COREDNS = "1.15.0"
KWOK = "0.8.0"
KUBE_ROUTER = "2.1.0"
VERSITYGW = "1.8.0"

GO_REMEDY = "install Go 1.26 or newer (https://go.dev/dl) and put its bin folder on PATH"
STATIC = {"CGO_ENABLED": "0"}


@dataclass(frozen=True)
class Programs:
    """Programs of one version that are built together, and roughly how long that takes on two cores."""

    title: str
    version: str
    minutes: int
    packages: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where they are once they are built; the version is in the name, so a newer one is built beside it."""
        return cache_folder() / "programs" / f"{self.title}-{self.version}"

    def path(self, program: str) -> Path:
        """The path of one of the programs."""
        return self.folder / program

    def announce(self) -> None:
        """Say what is about to take long."""
        step(f"building {self.title} {self.version} (once, about {self.minutes} min) ...")


ETCD_SERVER = Programs("etcd", ETCD, 2, ("go.etcd.io/etcd/server/v3",))
ETCD_RESTORER = Programs("etcdutl", ETCD, 1, ("go.etcd.io/etcd/etcdutl/v3",))
CONTROL_PLANE = Programs(
    "kubernetes-control-plane",
    KUBERNETES,
    8,
    tuple(f"k8s.io/kubernetes/cmd/{name}" for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler")),
)
NODE = Programs("kubernetes-node", KUBERNETES, 4, ("k8s.io/kubernetes/cmd/kubelet", "k8s.io/kubernetes/cmd/kube-proxy"))
CONTAINERS = Programs(
    "containerd",
    CONTAINERD,
    4,
    tuple(
        f"github.com/containerd/containerd/v2/cmd/{name}" for name in ("containerd", "containerd-shim-runc-v2", "ctr")
    ),
)
CLUSTER_DNS = Programs("coredns", COREDNS, 2, ("github.com/coredns/coredns",))
FAKE_NODES = Programs("kwok", KWOK, 1, ("sigs.k8s.io/kwok/cmd/kwok",))
FIREWALL = Programs("kube-router", KUBE_ROUTER, 3, ("github.com/cloudnativelabs/kube-router/v2/cmd/kube-router",))
OBJECT_STORE = Programs("versitygw", VERSITYGW, 2, ("github.com/versity/versitygw/cmd/versitygw",))


def build_control_plane() -> None:
    """Build what a control plane needs, unless it is in the cache."""
    _build_etcd_program(ETCD_SERVER, "etcd")
    _build_kubernetes(CONTROL_PLANE)


def build_node() -> None:
    """Build what a node needs, unless it is in the cache."""
    _install(CONTAINERS)
    _install(CLUSTER_DNS)
    _build_kubernetes(NODE)  # last: most of it is compiled by then, if a control plane is built meanwhile


def build_all() -> None:
    """Build everything, two things at a time: one downloads or links while the other compiles."""
    with ThreadPoolExecutor(2) as pool:
        building = [pool.submit(build) for build in (build_control_plane, build_node)]
    for build in building:
        build.result()


def build_kwok() -> None:
    """Build the program that plays nodes and pods for tests of scale, unless it is in the cache."""
    _install(FAKE_NODES)


def build_firewall() -> None:
    """Build the program that enforces NetworkPolicies in the test of ours, unless it is in the cache."""
    _install(FIREWALL)


def build_object_store() -> None:
    """Build the program that serves a folder as S3 in tests, unless it is in the cache."""
    _install(OBJECT_STORE)


def build_etcdutl() -> None:
    """Build the program that restores etcd from a backup, unless it is in the cache."""
    _build_etcd_program(ETCD_RESTORER, "etcdutl")


def _install(programs: Programs) -> None:
    with made_once(programs.folder) as folder:
        if folder is not None:
            programs.announce()
            packages = [f"{package}@v{programs.version}" for package in programs.packages]
            flags = ["-trimpath", "-ldflags", "-s -w"]
            run([_go(), "install", *flags, *packages], env={**STATIC, "GOBIN": str(folder)})


def _build_etcd_program(programs: Programs, name: str) -> None:
    with made_once(programs.folder) as folder:
        if folder is not None:
            programs.announce()
            needs = "".join(f"require {package} v{ETCD}\n" for package in programs.packages)
            _build_in_own_module(folder, needs, programs.packages, "-s -w", name)


def _build_kubernetes(programs: Programs) -> None:
    with made_once(programs.folder) as folder:
        if folder is not None:
            programs.announce()
            module = f"require k8s.io/kubernetes v{KUBERNETES}\n" + _staging_replacements()
            _build_in_own_module(folder, module, programs.packages, _version_stamp(), "")


def _build_in_own_module(folder: Path, module: str, packages: tuple[str, ...], linking: str, output: str) -> None:
    tools = "".join(f"tool {package}\n" for package in packages)
    source = folder / "module"
    source.mkdir()
    (source / "go.mod").write_text(f"module sluice.dev/local-cluster\n\ngo 1.26\n\n{tools}\n{module}")
    flags = ["-mod=mod", "-trimpath", "-ldflags", linking, "-o", f"{folder}/{output}"]
    run([_go(), "build", *flags, *packages], cwd=source, env=STATIC)


def _staging_replacements() -> str:
    """Each staging module that Kubernetes replaces by a folder, replaced by its published version instead."""
    listed = run([_go(), "list", "-mod=mod", "-m", "-json", f"k8s.io/kubernetes@v{KUBERNETES}"], cwd=Path("/"))
    go_mod = Path(json.loads(listed)["GoMod"]).read_text()
    staging = sorted(set(re.findall(r"(k8s\.io/\S+) => \./staging/", go_mod)))
    published = KUBERNETES.replace("1.", "0.", 1)
    return "".join(f"replace {module} => {module} v{published}\n" for module in staging)


def _version_stamp() -> str:
    """Linker flags without which the server would call itself v0.0.0."""
    major, minor, _ = KUBERNETES.split(".")
    stamps = {"gitVersion": f"v{KUBERNETES}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    return "-s -w " + " ".join(f"-X k8s.io/component-base/version.{name}={value}" for name, value in stamps.items())


def _go() -> str:
    return need("go", GO_REMEDY)
