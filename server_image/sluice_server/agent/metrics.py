"""The agent's Prometheus series."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

REGISTRY = CollectorRegistry()


class InFlight(Collector):
    """The requests inside vLLM. There is no series while the slot does not serve, as when it sleeps.

    An autoscaler leaves a pod without a series out, and would take zero for a replica that is not needed.
    """

    def __init__(self) -> None:
        self.count: int | None = None

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The series as it is now."""
        value = None if self.count is None else float(self.count)
        yield GaugeMetricFamily("sluice_agent_requests_in_flight", "Requests inside vLLM, while it serves.", value)


LOADS = Counter("sluice_agent_adapter_loads", "Adapters loaded or refused.", ["result"], registry=REGISTRY)
LOAD_SECONDS = Histogram(
    "sluice_agent_adapter_step_seconds", "Time to fetch, load or check an adapter.", ["step"], registry=REGISTRY
)
ADAPTERS = Gauge("sluice_agent_adapters", "Adapters of the engine in this slot.", ["state"], registry=REGISTRY)
IN_FLIGHT = InFlight()
REGISTRY.register(IN_FLIGHT)
SERVING = Gauge("sluice_agent_serving", "1 while the slot serves.", registry=REGISTRY)
DRAINING = Gauge("sluice_agent_draining", "1 while the slot drains.", registry=REGISTRY)
REPORTS = Counter("sluice_agent_reports", "Reports posted to the operator.", ["result"], registry=REGISTRY)
