"""The NetworkPolicies that Sluice makes, enforced by kube-router on the packets of a node: who reaches whom.

The operator's is the chart's, the others are the builders', all on a real API server. Pods are network namespaces.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
import yaml

from dev.cluster import binaries, host
from dev.cluster.control_plane import ControlPlane
from sluice_api.finetunejob import FineTuneJob
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.meta import API_VERSION, ENGINE_LABEL, JOB_LABEL, STAGE_LABEL
from sluice_operator.manifests.metadata import app_labels
from sluice_operator.manifests.network_policy import engine_policy, job_policy
from sluice_operator.observe.views import Address
from sluice_operator.settings import Network, Settings
from tests.integration.network_lab import BEYOND, NODE_ADDRESS, Lab
from tests.integration.nodes import MERGE_PATCH, Nodes
from tests.integration.progress_scene import JOB_SPEC, Kube, make_namespace
from tests.unit.chart.helm import render

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]
"""The first time kube-router is built."""

Body = dict[str, Any]

METADATA, NODE_LOCAL_DNS, PUBLIC, PRIVATE, API_SERVER = (
    *("169.254.169.254", "169.254.20.10", "8.8.8.8", "192.168.7.7", "10.0.7.4"),
)
PORTS = (53, 80, 443, 6443, 8000, 8001, 8080, 9000, 9090, 29500, 41234)
OPERATOR = {"app.kubernetes.io/name": "sluice", "app.kubernetes.io/component": "operator"}
TRAINER = app_labels("trainer", "tone")
PODS: dict[str, tuple[str, dict[str, str]]] = {
    "chat": ("team", {**app_labels("engine", "chat"), ENGINE_LABEL: "chat"}),
    "tone-0": ("team", {**TRAINER, JOB_LABEL: "tone", STAGE_LABEL: "Train"}),
    "tone-1": ("team", {**TRAINER, JOB_LABEL: "tone", STAGE_LABEL: "Train"}),
    "other-0": ("team", {**TRAINER, JOB_LABEL: "other", STAGE_LABEL: "Train"}),
    "fetching": ("team", {**TRAINER, JOB_LABEL: "fetching", STAGE_LABEL: "Prepare"}),
    "neighbour": ("team", {}),
    "stranger": ("other", {}),
    "gateway": ("gateway", {}),
    "prometheus": ("monitoring", {}),
    "operator": ("system", {**OPERATOR, "app.kubernetes.io/instance": "sluice"}),
    "dns": ("other", {"k8s-app": "kube-dns"}),
    "store": ("minio", {}),
}
"""Where each pod is, and its labels."""

REACHED = """
neighbour  chat:8000           yes   an engine answers its own namespace
stranger   chat:8000           no    and no other
gateway    chat:8000           yes   but for those that the chart lets in everywhere
prometheus chat:8000           yes   vLLM's metrics
prometheus chat:8001           yes   the agent's
neighbour  chat:8001           no
operator   chat:8000           no    the operator never asks an engine
router     chat:8001           yes   probes come from the node
tone-0     tone-1:29500        yes   a group
tone-1     tone-0:41234        yes   on any port
fetching   tone-0:29500        no    another job of the same namespace
other-0    tone-0:29500        no    nor one that trains
neighbour  tone-0:29500        no
stranger   tone-0:29500        no
chat       tone-0:29500        no
stranger   tone-0:9090         no    a job's metrics tell what it learns
prometheus tone-0:9090         yes
tone-0     operator:8080       yes   reports
chat       operator:8080       yes
tone-0     operator:9090       no
stranger   operator:8080       no
stranger   operator:9090       no
prometheus operator:9090       yes
tone-0     metadata:80         no    the cloud's metadata service, on no port of its own
tone-0     metadata:53         yes   but a cloud's resolver may be there (Cloud DNS for GKE)
chat       metadata:80         no
chat       metadata:443        no
fetching   metadata:80         no
fetching   metadata:443        no
neighbour  metadata:80         yes   who is not ours is not our business
tone-0     dns:53              yes   names
chat       dns:53              yes
chat       node-local-dns:53   yes
chat       node-local-dns:80   no
chat       api-server:6443     yes   the agent's watch
tone-0     api-server:6443     no    a trainer has no business there
fetching   api-server:443      no
tone-0     public:443          no    all that it reads is in claims
chat       public:443          no
fetching   public:443          yes   its model is on the hub
fetching   public:80           no
fetching   private:443         no
fetching   store:9000          yes   but for an object store that the chart opens
chat       store:9000          yes   to every engine
tone-0     store:9000          yes   and every job,
fetching   store:443           no    on its port
fetching   chat:8000           no
tone-0     neighbour:8000      no
"""


@pytest_asyncio.fixture
async def lab(
    control_plane: ControlPlane, kube: Kube, nodes: Nodes, namespace: str, tmp_path: Path
) -> AsyncIterator[Lab]:
    """A node on which kube-router enforces, with all the pods."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    host.install_packages(host.NEEDED_TO_ENFORCE)
    binaries.build_firewall()
    node = await nodes.add(f"{namespace}-n1")
    addresses = [{"type": "InternalIP", "address": NODE_ADDRESS}, {"type": "Hostname", "address": node}]
    await kube.call("PATCH", f"/api/v1/nodes/{node}/status", {"status": {"addresses": addresses}}, MERGE_PATCH)
    await kube.call("PATCH", f"/api/v1/nodes/{node}", {"spec": {"podCIDR": "10.244.0.0/16"}}, MERGE_PATCH)
    for place in {place for place, _ in PODS.values()} - {"team"}:
        await make_namespace(kube, f"{namespace}-{place}")
    with Lab.of(f"sl{namespace[-5:]}") as made:
        for pod, (place, labels) in PODS.items():
            address = made.add(pod)
            made.listen(pod, *PORTS)
            await run_pod(kube, at(namespace, place), node, pod, labels, address)
        made.add(BEYOND, METADATA, NODE_LOCAL_DNS, PUBLIC, PRIVATE, API_SERVER)
        made.listen(BEYOND, *PORTS)
        named = {"metadata": METADATA, "node-local-dns": NODE_LOCAL_DNS, "public": PUBLIC}
        made.addresses |= {**named, "private": PRIVATE, "api-server": API_SERVER}
        program, log = binaries.FIREWALL.path("kube-router"), tmp_path / "kube-router.log"
        async with made.enforcing(program, control_plane, node, log):
            yield made
    for place in {place for place, _ in PODS.values()} - {"team"}:
        await kube.call("DELETE", f"/api/v1/namespaces/{namespace}-{place}")


async def test_network_policies_let_only_listed_connections_through(lab: Lab, kube: Kube, namespace: str) -> None:
    """Everything is reached before the policies are there; then what they say and nothing else."""
    rows = [Row.parse(line) for line in REACHED.strip().splitlines()]
    assert [row for row in rows if not row.is_let_through(lab)] == []
    for policy in policies(namespace):
        place = policy["metadata"]["namespace"]
        await kube.call("POST", f"/apis/networking.k8s.io/v1/namespaces/{place}/networkpolicies", policy)

    async def wrong() -> list[str]:
        """All rows at once: who is not let through says nothing, for a second."""
        through = await asyncio.gather(*(asyncio.to_thread(row.is_let_through, lab) for row in rows))
        return [f"not so: {row}" for row, is_let in zip(rows, through, strict=True) if is_let is not row.allowed]

    until = time.monotonic() + 60
    while (mistakes := await wrong()) and time.monotonic() < until:
        pass  # kube-router tells nobody that it has read a policy
    assert mistakes == []


class Row(NamedTuple):
    """A connection that is let through or not."""

    who: str
    whom: str
    port: int
    allowed: bool

    @classmethod
    def parse(cls, line: str) -> "Row":
        """A line of REACHED."""
        who, whom, said, *_ = line.split()
        place, _, port = whom.partition(":")
        return cls(who, place, int(port), said == "yes")

    def is_let_through(self, lab: Lab) -> bool:
        """Try it."""
        return lab.reaches(self.who, lab.addresses[self.whom], self.port)


def policies(namespace: str) -> list[Body]:
    """The chart's, an engine's, a group's, and that of a job that reads from the hub."""
    monitoring = peer(at(namespace, "monitoring"))
    store = {"to": [peer(at(namespace, "minio"))], "ports": [{"port": 9000, "protocol": "TCP"}]}
    network = Network(clients_from=(peer(at(namespace, "gateway")),), metrics_from=(monitoring,), egress=(store,))
    settings = Settings(
        namespace=at(namespace, "system"),
        pod_name="operator-0",
        report_url="",
        trainer_image="nothing",
        server_image="nothing",
        network=network,
    )
    chart = render(
        *("--namespace", settings.namespace, "--show-only", "templates/networkpolicy.yaml"),
        *("--set-json", f"networkPolicy.metricsFrom={json.dumps([monitoring])}"),
    )
    engine = InferenceEngine.parse(resource("InferenceEngine", namespace, "chat", {"model": JOB_SPEC["model"]}))
    group = FineTuneJob.parse(resource("FineTuneJob", namespace, "tone", {**JOB_SPEC, "resources": {"nodes": 2}}))
    on_the_hub = {**JOB_SPEC, "model": {"uri": "hf://org/model@main"}}
    fetching = FineTuneJob.parse(resource("FineTuneJob", namespace, "fetching", on_the_hub))
    made = [
        engine_policy(engine, [Address(API_SERVER, 6443)], settings),
        job_policy(group, settings),
        job_policy(fetching, settings),
    ]
    for policy in made:
        del policy["metadata"]["ownerReferences"]  # of objects that are not there: it would be collected
    return [*made, *yaml.safe_load_all(chart)]


def at(namespace: str, place: str) -> str:
    """The name of a namespace."""
    return namespace if place == "team" else f"{namespace}-{place}"


def peer(namespace: str) -> Body:
    """All pods of a namespace."""
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}


def resource(kind: str, namespace: str, name: str, spec: Body) -> Body:
    """A custom resource as the API server has it."""
    metadata = {"name": name, "namespace": namespace, "uid": f"{name}-0000"}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


async def run_pod(kube: Kube, namespace: str, node: str, name: str, labels: dict[str, str], address: str) -> None:
    """A pod that has an address on a node."""
    spec = {"nodeName": node, "containers": [{"name": "c", "image": "nothing"}]}
    place = f"/api/v1/namespaces/{namespace}/pods"
    await kube.call("POST", place, {"metadata": {"name": name, "labels": labels}, "spec": spec})
    where = {"podIP": address, "podIPs": [{"ip": address}], "hostIP": NODE_ADDRESS, "hostIPs": [{"ip": NODE_ADDRESS}]}
    await kube.call("PATCH", f"{place}/{name}/status", {"status": {"phase": "Running", **where}}, MERGE_PATCH)
