"""Which reports become writes, and what a reader then sees."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_api.finetunejob import Progress
from sluice_api.quantity import decimal
from sluice_api.reports import Activity, TrainingReport
from sluice_api.stages import Stage
from sluice_operator.progress.coalesce import EVERY, Written, due, length, progress_after

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
BEFORE = NOW - timedelta(seconds=1)


def progress(at: datetime = BEFORE, **fields: Any) -> Progress:
    return Progress(activity="Training", attempt=1, step=10, checkpoint_step=5, reported_at=at).model_copy(
        update=fields
    )


def report(**fields: Any) -> TrainingReport:
    known = {"attempt": 1, "sequence": 1, "activity": Activity.TRAINING, "step": 120, "total_steps": 300}
    return TrainingReport(**(known | fields))


WRITTEN = Written(progress(), BEFORE)


@pytest.mark.parametrize(
    ("rule", "written", "newest", "expected"),
    [
        ("the first is written at once", None, progress(NOW), NOW),
        ("nothing new is never written", WRITTEN, progress(NOW), None),
        ("numbers wait", WRITTEN, progress(NOW, step=11), BEFORE + EVERY),
        (
            "numbers that waited long enough are due",
            Written(progress(), NOW - 2 * EVERY),
            progress(NOW, step=11),
            NOW - EVERY,
        ),
        ("a new activity is written at once", WRITTEN, progress(NOW, activity="Saving"), NOW),
        ("the last is written at once", WRITTEN, progress(NOW, activity="Finished"), NOW),
        ("a new checkpoint is written at once", WRITTEN, progress(NOW, checkpoint_step=10), NOW),
        ("a new attempt is written at once", WRITTEN, progress(NOW, attempt=2), NOW),
    ],
)
def test_progress_write_is_due(rule: str, written: Written | None, newest: Progress, expected: datetime | None) -> None:
    assert due(written, newest) == expected, rule


@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 50)), min_size=1, max_size=60))
def test_progress_numbers_cause_at_most_one_write_in_an_interval(steps: list[tuple[int, int]]) -> None:
    now, written, writes = NOW, None, []
    for wait, step in steps:
        now += timedelta(milliseconds=wait)
        newest = progress(now, step=step)
        at = due(written, newest)
        if at is not None and at <= now:
            written = Written(newest, now)
            writes.append(now)
    assert all(after - before >= EVERY for before, after in pairwise(writes))


def test_checkpoint_that_was_not_saved_is_told_until_one_is() -> None:
    failed = progress_after(None, Stage.TRAIN, report(unsaved="Step 30 could not be saved; step 20 is durable."), NOW)
    assert failed.unsaved == "Step 30 could not be saved; step 20 is durable."
    assert progress_after(failed, Stage.TRAIN, report(), NOW).unsaved == ""


def test_progress_after_a_report_is_rounded_for_readers() -> None:
    seen = progress_after(
        None,
        Stage.TRAIN,
        report(
            epoch=1.25,
            loss=2.34561,
            learning_rate=0.000198765,
            gradient_norm=1.23456,
            tokens_per_second=1234.6,
            memory_bytes=2**30,
            gpu_memory_bytes=5_579_800_576,
            seconds_left=250,
            checkpoint_step=100,
        ),
        NOW,
    )
    assert seen.model_dump(exclude_defaults=True) == {
        "activity": "Training",
        "step": 120,
        "total_steps": 300,
        "percent": "120/300",
        "epoch": "1.25",
        "loss": "2.3456",
        "learning_rate": "0.000199",
        "gradient_norm": "1.23",
        "tokens_per_second": "1235",
        "memory": "1024Mi",
        "gpu_memory": "5322Mi",
        "seconds_left": 250,
        "time_left": "4m10s",
        "checkpoint_step": 100,
        "attempt": 1,
        "reported_at": NOW,
    }


def test_progress_keeps_what_a_new_attempt_does_not_know_yet() -> None:
    trained = progress_after(None, Stage.TRAIN, report(loss=2.0, gpu_memory_bytes=2**30, seconds_left=9), NOW)
    starting = report(attempt=2, activity=Activity.STARTING, step=0, total_steps=0)
    seen = progress_after(trained, Stage.TRAIN, starting, NOW)
    assert (seen.attempt, seen.activity, seen.percent, seen.loss) == (2, "Starting", "120/300", "2.0000")
    assert (seen.gpu_memory, seen.time_left, seen.seconds_left) == ("", "", None)


def test_progress_of_training_stays_during_export() -> None:
    trained = progress_after(None, Stage.TRAIN, report(attempt=3, loss=2.0, seconds_left=9), NOW)
    exporting = report(attempt=1, activity=Activity.EXPORTING, step=0, total_steps=0)
    seen = progress_after(trained, Stage.EXPORT, exporting, NOW)
    assert (seen.activity, seen.attempt, seen.percent, seen.loss) == ("Exporting", 3, "120/300", "2.0000")
    assert seen.time_left == ""


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0s"), (59, "59s"), (250, "4m10s"), (3600, "1h0m"), (7530, "2h5m"), (273_600, "3d4h")],
)
def test_length_of_time_is_text(seconds: int, expected: str) -> None:
    assert length(seconds) == expected


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_decimal_fits_into_its_column(value: float) -> None:
    assert len(decimal(value, 4)) <= 20
