"""The agent's Prometheus series."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()

LOADS = Counter("sluice_agent_adapter_loads", "Adapters loaded or refused.", ["result"], registry=REGISTRY)
LOAD_SECONDS = Histogram(
    "sluice_agent_adapter_step_seconds", "Time to fetch, load or check an adapter.", ["step"], registry=REGISTRY
)
ADAPTERS = Gauge("sluice_agent_adapters", "Adapters of the engine in this slot.", ["state"], registry=REGISTRY)
IN_FLIGHT = Gauge("sluice_agent_requests_in_flight", "Requests inside vLLM.", registry=REGISTRY)
SERVING = Gauge("sluice_agent_serving", "1 while the slot serves.", registry=REGISTRY)
DRAINING = Gauge("sluice_agent_draining", "1 while the slot drains.", registry=REGISTRY)
REPORTS = Counter("sluice_agent_reports", "Reports posted to the operator.", ["result"], registry=REGISTRY)
