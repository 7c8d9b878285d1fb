"""What is counted and timed as it happens. What a World shows, exposition.py reads from it at each scrape."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()

QUEUE_WAIT_SECONDS = Histogram(
    "sluice_job_queue_wait_seconds",
    "From a job's first wish for GPUs to its first claim of them.",
    ("pool",),
    buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000),
    registry=REGISTRY,
)
RECONCILE_SECONDS = Histogram(
    "sluice_reconcile_seconds",
    "One reconcile, from the World to the last write.",
    ("kind",),
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
    registry=REGISTRY,
)
RECONCILE_ERRORS = Counter(
    "sluice_reconcile_errors", "Reconciles that failed and are tried again.", ("kind",), registry=REGISTRY
)
INTERNAL_ERRORS = Counter(
    "sluice_internal_errors",
    "Objects that were set aside because an exception was raised when they were looked at.",
    ("kind",),
    registry=REGISTRY,
)
QUEUE_DEPTH = Gauge("sluice_queue_depth", "Keys that wait for a worker.", registry=REGISTRY)
API_WRITES = Counter("sluice_api_writes", "Writes to the API server.", ("verb", "kind", "result"), registry=REGISTRY)
WATCH_ERRORS = Counter("sluice_watch_errors", "Watches that broke and began anew.", ("kind",), registry=REGISTRY)
CERTIFICATE_ENDS = Gauge(
    "sluice_certificate_expiration_timestamp_seconds",
    "When the certificate ends by which pods know this process; 0 without TLS.",
    registry=REGISTRY,
)
PROGRESS_REPORTS = Counter(
    "sluice_progress_reports",
    "Reports of trainers and engine agents: accepted, or why not.",
    ("kind", "result"),
    registry=REGISTRY,
)
