"""/metrics of the Train stage."""

import os

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from sluice_api.pods import METRICS_PORT
from sluice_trainer import logs

STEP_SECONDS = Histogram(
    "sluice_trainer_step_seconds",
    "Duration of an optimizer step.",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
)
SAVE_SECONDS = Histogram(
    "sluice_trainer_save_seconds",
    "Time that training stood still for a checkpoint.",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
)
FAILED_SAVES = Counter(
    "sluice_trainer_failed_saves", "Checkpoints that could not be written in this attempt; an older one is durable."
)
TOKENS = Counter("sluice_trainer_tokens", "Real tokens trained on in this attempt, padding excluded.")
STEPS = Gauge("sluice_trainer_steps", "Optimizer steps done, over all attempts.")
LOSS = Gauge("sluice_trainer_loss_nats", "Mean training loss of the last step over its learnt tokens.")
EVALUATION_LOSS = Gauge("sluice_trainer_evaluation_loss_nats", "Mean loss over the held-out learnt tokens.")


def serve() -> None:
    """Serve /metrics on the pods' port. SLUICE_METRICS_PORT moves it; 0 turns it off."""
    port = int(os.environ.get("SLUICE_METRICS_PORT", METRICS_PORT))
    if port == 0:
        return
    try:
        start_http_server(port)
    except OSError as error:
        logs.warning("metrics are not served", port=port, error=str(error))
