"""/metrics of the Train stage."""

import os
from functools import partial

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from sluice_api.pods import METRICS_PORT
from sluice_api.reports import Activity
from sluice_trainer import logs
from sluice_trainer.report import Reporter

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
_ACTIVITY = Gauge("sluice_trainer_activity", "1 for what the trainer does now, 0 for all else.", ["activity"])
_FIGURES = {
    "step": Gauge("sluice_trainer_steps", "Optimizer steps done, over all attempts."),
    "total_steps": Gauge("sluice_trainer_target_steps", "Optimizer steps of the whole job."),
    "epoch": Gauge("sluice_trainer_epoch", "Passes over the training rows done, with a fraction."),
    "loss": Gauge("sluice_trainer_loss_nats", "Mean training loss of the last step over what it counts."),
    "evaluation_loss": Gauge("sluice_trainer_evaluation_loss_nats", "Mean loss over the held-out rows."),
    "learning_rate": Gauge("sluice_trainer_learning_rate", "Of the last step."),
    "gradient_norm": Gauge("sluice_trainer_gradient_norm", "Of the last step, before it was clipped."),
    "tokens_per_second": Gauge("sluice_trainer_tokens_per_second", "Real tokens, padding excluded."),
    "seconds_left": Gauge("sluice_trainer_seconds_left", "An estimate of the time to the last step."),
    "gpu_memory_bytes": Gauge("sluice_trainer_gpu_memory_bytes", "Peak of this attempt."),
    "memory_bytes": Gauge("sluice_trainer_memory_bytes", "Peak of this process in the host's memory."),
}


def set_gauges(**figures: float | None) -> None:
    """Set gauges by the names of a report's fields; None leaves a gauge as it is."""
    for name, value in figures.items():
        if value is not None:
            _FIGURES[name].set(value)


def follow_activity(reporter: Reporter) -> None:
    """Take the activity from the reporter, at each scrape."""
    for activity in Activity:
        _ACTIVITY.labels(activity).set_function(partial(_is_activity, reporter, activity))


def _is_activity(reporter: Reporter, activity: Activity) -> float:
    return float(reporter.activity is activity)


def serve() -> None:
    """Serve /metrics on the pods' port. SLUICE_METRICS_PORT moves it; 0 turns it off."""
    port = int(os.environ.get("SLUICE_METRICS_PORT", METRICS_PORT))
    if port == 0:
        return
    try:
        start_http_server(port)
    except OSError as error:
        logs.warning("metrics are not served", port=port, error=str(error))
