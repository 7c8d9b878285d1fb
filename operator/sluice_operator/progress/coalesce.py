"""Which of many reports become a write of status.progress: few, but always the first, the last and each checkpoint."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sluice_api.finetunejob import Progress
from sluice_api.quantity import decimal
from sluice_api.reports import TrainingReport
from sluice_api.stages import Stage

EVERY = timedelta(seconds=3)
"""Between two writes for one job that only move its numbers. Each write is a line under `kubectl get ftj -w`."""

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Written:
    """What status.progress says, and when that was written."""

    progress: Progress
    at: datetime


def due(written: Written | None, newest: Progress) -> datetime | None:
    """When the newest progress is to be written, a moment that is over for "at once"; None for never."""
    if written is None:
        return newest.reported_at
    if _figures(written.progress) == _figures(newest):
        return None
    if _landmark(written.progress) != _landmark(newest):
        return newest.reported_at
    return written.at + EVERY


def _figures(progress: Progress) -> Progress:
    """What a reader would see change."""
    return progress.model_copy(update={"reported_at": None})


def _landmark(progress: Progress) -> tuple[int, str, int | None]:
    """What a reader waits for: a new attempt, another activity (its end is one), a new checkpoint."""
    return progress.attempt, progress.activity, progress.checkpoint_step


def progress_after(before: Progress | None, stage: Stage, report: TrainingReport, now: datetime) -> Progress:
    """Status.progress after a report.

    What a report does not know yet stays as it was: a new attempt's first reports come before it has read its
    checkpoint, and only the Train stage knows of steps at all. Figures of the moment do not outlive it.
    """
    old = before or Progress()
    if stage is not Stage.TRAIN:
        return old.model_copy(
            update={
                "activity": report.activity.value,
                "reported_at": now,
                "tokens_per_second": "",
                "seconds_left": None,
                "time_left": "",
            }
        )
    knows_steps = report.total_steps > 0
    resumed = report.attempt != old.attempt
    return Progress(
        activity=report.activity.value,
        step=report.step if knows_steps else old.step,
        total_steps=report.total_steps or old.total_steps,
        percent=f"{report.step}/{report.total_steps}" if knows_steps else old.percent,
        epoch=decimal(report.epoch, 2) if knows_steps else old.epoch,
        loss=old.loss if report.loss is None else decimal(report.loss, 4),
        evaluation_loss=(old.evaluation_loss if report.evaluation_loss is None else decimal(report.evaluation_loss, 4)),
        learning_rate=old.learning_rate if report.learning_rate is None else f"{report.learning_rate:.3g}",
        gradient_norm=old.gradient_norm if report.gradient_norm is None else f"{report.gradient_norm:.3g}",
        tokens_per_second="" if report.tokens_per_second is None else decimal(report.tokens_per_second, 0),
        gpu_memory=_memory(report.gpu_memory_bytes, "" if resumed else old.gpu_memory),
        memory=_memory(report.memory_bytes, "" if resumed else old.memory),
        seconds_left=report.seconds_left,
        time_left="" if report.seconds_left is None else length(report.seconds_left),
        checkpoint_step=old.checkpoint_step if report.checkpoint_step is None else report.checkpoint_step,
        unsaved=report.unsaved or "",
        attempt=report.attempt,
        reported_at=now,
    )


def length(seconds: int) -> str:
    """A length of time as kubectl writes ages: 45s, 4m10s, 2h5m, 3d4h."""
    days, rest = divmod(seconds, 86_400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    if days:
        return f"{days}d{hours}h"
    if hours:
        return f"{hours}h{minutes}m"
    return f"{minutes}m{left}s" if minutes else f"{left}s"


def _memory(size: int | None, unknown: str) -> str:
    """Bytes as a quantity: 5321Mi."""
    return unknown if size is None else f"{-(-size // _MIB)}Mi"
