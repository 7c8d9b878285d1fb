"""What the chart tells the operator. One place; the chart's values.yaml has the defaults."""

import os
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field

from sluice_api.model import Model

MONITORING = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}


class Network(Model):
    """The NetworkPolicies that the operator makes for engines and jobs. Peers and rules are as Kubernetes has them."""

    clients_from: tuple[dict[str, Any], ...] = Field(())
    """Peers that may ask every engine, whatever its spec says: an ingress controller's pods, say."""
    egress: tuple[dict[str, Any], ...] = Field(())
    """More ways out of the pods of engines and jobs, as egress rules: a proxy, a mirror of the hub."""
    metrics_from: tuple[dict[str, Any], ...] = Field((MONITORING,))
    """Peers that may read the metrics of those pods."""
    workloads: bool = Field(True)
    """Whether there are any."""

    def __str__(self) -> str:
        """As the environment has it."""
        return self.to_json()


_NETWORK = Network()


@dataclass(frozen=True, slots=True)
class Limits:
    """How long each step of a claim may take."""

    bind: timedelta = timedelta(seconds=60)
    """From the removal of a pod's gate until the pod is on its node. A claim has as long to be proven."""
    sleep: timedelta = timedelta(seconds=90)
    """Until the vLLM of every borrowed slot that sleeps has freed its GPUs' memory. Sleep level 1 first copies the
    weights into the host's memory, 22 GiB in 11 s (vllm#48337)."""
    start: timedelta = timedelta(seconds=600)
    """Until the pod's container has started."""
    stall: timedelta = timedelta(seconds=120)
    """The least silence after which training counts as stalled. It is ended after half of this time more."""

    @classmethod
    def from_environment(cls) -> Self:
        """As the operator's environment variables have them; the defaults where those are not set."""
        texts = {name: os.environ.get(f"SLUICE_{field.upper()}") for name, field in _OF_LIMITS.items()}
        return cls(**{name: timedelta(seconds=int(text)) for name, text in texts.items() if text is not None})


_OF_LIMITS = {
    "bind": "bind_deadline_seconds",
    "start": "stage_start_deadline_seconds",
    "stall": "stalled_after_seconds",
}
"""For each limit that can be set, the field of Settings."""


_DEFAULTS = Limits()


@dataclass(frozen=True)
class Settings:
    """The operator's configuration, read once from SLUICE_* environment variables.

    Every field is an environment variable of the same name in upper case behind SLUICE_.
    """

    namespace: str
    """Namespace of the operator: its Lease and its progress Service are here."""
    pod_name: str
    report_url: str
    """Where pods post reports: scheme, host and port of the progress Service. With https, metrics go by TLS too."""
    trainer_image: str
    server_image: str
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    """Secrets with which pods of jobs and engines pull their images, unless their spec names others."""
    network: Network = _NETWORK
    device: Literal["cuda", "cpu"] = "cuda"
    """Which vLLM the server image has."""
    watch_namespaces: tuple[str, ...] = ()
    """Whose custom resources are served; empty means all."""
    training_priority_class: str = "sluice-training"
    inference_priority_class: str = "sluice-inference"
    placeholder_priority_class: str = "sluice-placeholder"
    """Below the engines': a placeholder is in the way of others' pods only."""
    stage_start_deadline_seconds: int = _DEFAULTS.start.seconds
    """A stage's pod that has not started by then has failed (an image that can't be pulled, say)."""
    bind_deadline_seconds: int = _DEFAULTS.bind.seconds
    """A training pod that is not bound so long after its gate came off gives its claim up."""
    stalled_after_seconds: int = _DEFAULTS.stall.seconds
    """Training without a sign of life for so long (and for five of its steps) is Stalled, and ended after half as much
    again."""
    unreachable_seconds: int = 600
    """A replica none of whose requests to the API server has succeeded for so long is restarted by its liveness probe.
    It calls itself not ready after a tenth of that."""
    lease_seconds: int = 15
    workers: int = 8
    give_back_seconds: int = 120
    """For how long an uninstall waits for lent replicas to come back, from the moment the operator has stopped."""
    resync_seconds: int = 300
    """Between two full list-and-diff passes that repair what a watch lost."""
    progress_port: int = 8080
    metrics_port: int = 9090
    certificate_issuer: Literal["Sluice", "CertManager"] = "Sluice"
    """Who writes the Secret with the operator's certificate."""
    metrics_access: Literal["Token", "Open"] = "Token"
    """Whether /metrics asks for a token that may get it."""

    @property
    def limits(self) -> Limits:
        """How long each step of a claim may take."""
        return Limits(**{name: timedelta(seconds=getattr(self, field)) for name, field in _OF_LIMITS.items()})

    @property
    def by_tls(self) -> bool:
        """Whether reports and metrics go by TLS."""
        return urlsplit(self.report_url).scheme == "https"

    @classmethod
    def from_environment(cls) -> Self:
        """Read SLUICE_* variables.

        Raises:
            pydantic.ValidationError: SLUICE_NETWORK is not as it should be.
            KeyError: a variable without a default is not set; the chart sets them all.
        """
        values: dict[str, object] = {}
        for field in fields(cls):
            text = os.environ.get(f"SLUICE_{field.name.upper()}")
            if text is None:
                continue
            if field.type is int:
                values[field.name] = int(text)
            elif field.type is Network:
                values[field.name] = Network.model_validate_json(text)
            elif field.type == tuple[str, ...]:
                values[field.name] = tuple(part for part in text.split(",") if part)
            else:
                values[field.name] = text
        missing = [f.name for f in fields(cls) if f.name not in values and f.default is f.default_factory]
        if missing:
            raise KeyError(f"not set: {', '.join('SLUICE_' + name.upper() for name in missing)}")
        return cls(**values)  # type: ignore[arg-type]
