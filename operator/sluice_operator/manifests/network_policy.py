"""Who may reach the pods of an engine or of a job, and what these may reach: a NetworkPolicy for each.

What a policy does not name is closed, so the cloud's metadata service is: no rule here has a link-local address but
for names, on their own ports. Probes need no rule: a node always reaches its own pods.
"""

from collections.abc import Iterable, Sequence
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

from sluice_api import pods
from sluice_api.finetunejob import FineTuneJob
from sluice_api.inferenceengine import Clients, ClientsFrom, InferenceEngine
from sluice_api.meta import ENGINE_LABEL, JOB_LABEL, STAGE_LABEL, engine_network_name, job_network_name
from sluice_api.sources import config_map_key, volume_path
from sluice_api.stages import Stage
from sluice_operator.manifests.metadata import app_labels, owned_by
from sluice_operator.observe.views import Address
from sluice_operator.settings import Settings
from sluice_operator.writes import Manifest

_HTTPS = 443
_DNS = (("UDP", 53), ("TCP", 53), ("UDP", 5353), ("TCP", 5353))
"""Also where OpenShift's resolvers listen."""
_NO_INTERNET = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",  # shared with providers; pods and nodes of some clouds
    "127.0.0.0/8",
    "169.254.0.0/16",  # of a link: metadata services
    "172.16.0.0/12",
    "192.0.0.0/24",  # one cloud's metadata service
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",  # benchmarks; pods of some clusters
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved; pods of some clusters
)
"""Where clusters, their nodes and their neighbours are, and what nobody is.

https://www.iana.org/assignments/iana-ipv4-special-registry
"""
_INTERNET_6, _NO_INTERNET_6 = "2000::/3", ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
"""All global unicast addresses; in it tunnels that would lead to any IPv4 address, and examples.

https://www.iana.org/assignments/iana-ipv6-special-registry
"""
_TRANSLATED = "64:ff9b::/96"
"""NAT64, by which pods of a cluster with IPv6 alone reach the IPv4 internet."""


def engine_policy(engine: InferenceEngine, api_servers: Sequence[Address], settings: Settings) -> Manifest:
    """Who may ask an engine, and what its pods reach: the API server, reports, and the hub if the model is there."""
    name = engine.metadata.name
    labels = {**app_labels("engine", name), ENGINE_LABEL: name}
    network = settings.network
    ingress = [
        *_let_in(_clients(engine.spec.clients, network.clients_from), [pods.SERVE_PORT]),
        *_let_in(network.metrics_from, [pods.SERVE_PORT, pods.AGENT_PORT]),
    ]
    egress = [*_common(settings), *_api_servers(api_servers), *_public(*_fetched(engine)), *network.egress]
    metadata = owned_by(engine, engine_network_name(name), labels)
    return _policy(metadata, {ENGINE_LABEL: name}, ingress, egress)


def _fetched(engine: InferenceEngine) -> list[str]:
    """Addresses that its pods fetch from. Of adapters that come later, that some may be elsewhere than in a claim."""
    lora = engine.spec.lora
    return [*engine.spec.addresses.values(), *(["https://"] if lora and lora.credentials else [])]


def job_policy(job: FineTuneJob, settings: Settings) -> Manifest:
    """What the pods of a job reach: reports, and what its addresses need. Only those of its group reach them."""
    name = job.metadata.name
    ours = {JOB_LABEL: name}
    group = [{"podSelector": {"matchLabels": {**ours, STAGE_LABEL: Stage.TRAIN.value}}}]
    together = job.spec.resources.nodes > 1
    ingress = [
        *([{"from": group}] if together else []),
        *_let_in(settings.network.metrics_from, [pods.METRICS_PORT]),
    ]
    egress = [
        *_common(settings),
        *([{"to": group}] if together else []),
        *_public(*job.spec.addresses.values()),
        *settings.network.egress,
    ]
    labels = {**app_labels("trainer", name), **ours}
    metadata = owned_by(job, job_network_name(name, job.metadata.uid), labels)
    return _policy(metadata, ours, ingress, egress)


def _policy(metadata: Manifest, pods_of: Manifest, ingress: Sequence[Manifest], egress: Sequence[Manifest]) -> Manifest:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata,
        "spec": {
            "podSelector": {"matchLabels": pods_of},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": list(ingress),
            "egress": list(egress),
        },
    }


def _clients(clients: Clients, always: Sequence[Manifest]) -> list[Manifest] | None:
    """Peers that may ask; None for everybody."""
    if clients.come_from is ClientsFrom.ANYWHERE:
        return None
    peers: list[Manifest] = [{"podSelector": {}}]
    if clients.namespaces is not None:
        selected = clients.namespaces.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        peers.append({"namespaceSelector": selected})
    return [*peers, *always]


def _let_in(peers: Sequence[Manifest] | None, ports: Iterable[int]) -> list[Manifest]:
    """A rule for some peers, or for everybody; no peers are nobody, which an empty list in a rule would not be."""
    open_ports = [{"port": port, "protocol": "TCP"} for port in ports]
    if peers is None:
        return [{"ports": open_ports}]
    return [{"from": list(peers), "ports": open_ports}] if peers else []


def _common(settings: Settings) -> list[Manifest]:
    """Names, wherever the cluster's resolver runs, and the operator, to which every pod of ours reports.

    Resolvers are link-local too: NodeLocal DNSCache at an address that its installer chooses, Cloud DNS for GKE at
    169.254.169.254, where the metadata service has other ports.
    """
    anywhere = [{"namespaceSelector": {}}, *({"ipBlock": {"cidr": cidr}} for cidr in ("0.0.0.0/0", "::/0"))]
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.namespace}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "sluice", "app.kubernetes.io/component": "operator"}},
    }
    return [
        {"to": anywhere, "ports": [{"port": port, "protocol": protocol} for protocol, port in _DNS]},
        {"to": [operator], "ports": [{"port": settings.progress_port, "protocol": "TCP"}]},
    ]


def _api_servers(addresses: Sequence[Address]) -> list[Manifest]:
    """A rule for each port. A slot's agent watches its engine there; containers of one pod can't be told apart."""
    rules = []
    for port in sorted({address.port for address in addresses}):
        found = [_single(address.ip) for address in addresses if address.port == port]
        rules.append({"to": [{"ipBlock": {"cidr": cidr}} for cidr in found], "ports": [_tcp(port)]})
    return rules


def _public(*uris: str) -> list[Manifest]:
    """The internet, but no private address, if one of these addresses is there.

    Where an object store or a mirror of the hub listens inside the cluster, only a Secret says, which the operator
    does not read: the chart's networkPolicy.egress opens that.
    """
    ports = sorted({_port(uri) for uri in uris if volume_path(uri) is None and config_map_key(uri) is None})
    if not ports:
        return []
    ports = sorted({_HTTPS, *ports})  # what is fetched may be elsewhere than what was asked
    return [{"to": _internet(), "ports": [_tcp(port) for port in ports]}]


def _port(uri: str) -> int:
    """Where an address listens. Of one that is none Prepare says so, when it tries to fetch it."""
    try:
        return urlsplit(uri).port or _HTTPS
    except ValueError:
        return _HTTPS


def _internet() -> list[Manifest]:
    translated = [_translated(cidr) for cidr in _NO_INTERNET]
    return [
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": list(_NO_INTERNET)}},
        {"ipBlock": {"cidr": _INTERNET_6, "except": list(_NO_INTERNET_6)}},
        {"ipBlock": {"cidr": _TRANSLATED, "except": translated}},
    ]


def _translated(cidr: str) -> str:
    """A block of IPv4 addresses as NAT64 writes it."""
    address, _, length = cidr.partition("/")
    return str(ip_network(f"64:ff9b::{address}/{96 + int(length)}"))


def _single(ip: str) -> str:
    return f"{ip}/{ip_address(ip).max_prefixlen}"


def _tcp(port: int) -> Manifest:
    return {"port": port, "protocol": "TCP"}
