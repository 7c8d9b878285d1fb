"""The watchdog: training that has stalled says so, and where."""

import json
import signal
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from sluice_api.reports import Activity
from sluice_api.stages import ExitCode
from sluice_trainer.report import Reporter
from sluice_trainer.train.watchdog import Watchdog
from tests.unit.trainer.forked import TRAINING, Parent
from tests.unit.trainer.jobs import Job


class RecordingReporter(Reporter):
    """Keeps the messages for the operator."""

    def __init__(self) -> None:
        self.messages: list[str | None] = []
        self.stalled = threading.Semaphore(0)

    def update(self, *, loss_sum: float = 0.0, loss_count: int = 0, **changes: Any) -> None:
        self.messages.append(changes["message"])
        if changes["message"]:
            self.stalled.release()


def complaints(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [line for line in lines if line["event"].startswith("no progress")]


def a_step_that_hangs(until: threading.Semaphore) -> bool:
    return until.acquire(timeout=10)


def test_watchdog_reports_a_step_that_hangs_once_with_every_stack(capsys: pytest.CaptureFixture[str]) -> None:
    reporter, over = RecordingReporter(), threading.Event()
    threading.Thread(target=over.wait, args=(10,), name="another").start()
    with Watchdog(reporter, floor_seconds=0.05) as watchdog:
        assert a_step_that_hangs(reporter.stalled)
        assert not reporter.stalled.acquire(timeout=0.2)
        watchdog.step(0.001)
        assert a_step_that_hangs(reporter.stalled)
    over.set()
    first, step, _ = reporter.messages
    assert step is None
    assert first is not None
    assert first.startswith("no progress for 0 s; training is in ")
    assert " a_step_that_hangs" in first

    first_line, _ = complaints(capsys)
    assert first_line["event"] == "no progress for 0 s"
    assert first_line["level"] == "WARNING"
    assert {"MainThread", "another", "watchdog"} <= first_line["stacks"].keys()
    assert any(frame.endswith(" a_step_that_hangs") for frame in first_line["stacks"]["MainThread"])
    assert first_line["stacks"]["another"][-1].endswith(" wait")


def test_watchdog_is_silent_while_steps_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the test's clock, in which no step is late; the watchdog looks several times."""
    reporter, clock = RecordingReporter(), [0.0]
    monkeypatch.setattr("sluice_trainer.train.watchdog.time", SimpleNamespace(monotonic=lambda: clock[0]))
    with Watchdog(reporter, floor_seconds=0.1) as watchdog:
        for _ in range(5):
            clock[0] += 0.09
            assert not reporter.stalled.acquire(timeout=0.15)
            watchdog.step(0.01)
    assert (set(reporter.messages), complaints(capsys)) == ({None}, [])


HALTS_WITH_A_MESSAGE = """
import os, signal, threading
from sluice_trainer import report

update = report.Reporter.update

def halts_with_a_message(reporter, **changes):
    update(reporter, **changes)
    if changes.get("message"):
        os.kill(os.getpid(), signal.SIGSTOP)

report.Reporter.update = halts_with_a_message
"""
HANGS = f"""{HALTS_WITH_A_MESSAGE}
from sluice_trainer.train import loop, watchdog
from sluice_trainer.train.objective import NextToken

whole, left = NextToken.summed_loss, iter(range(12))

def summed_loss(*args):
    if next(left, None) is None:
        threading.Event().wait()
    return whole(*args)

NextToken.summed_loss = summed_loss
watchdog.STALL_FLOOR_SECONDS, loop.Pace.step_seconds = 2, 0.6
"""
"""In its seventh step, after steps that are said to take 0.6 s: 3 s are too long then, and 2 s before the first."""


EVALUATION_HANGS = f"""{HALTS_WITH_A_MESSAGE}
from sluice_trainer.train import evaluate, watchdog

whole, left = evaluate.make_micro_batch, iter(range(2))

def make_micro_batch(rows, batching, device):
    if next(left, None) is None:
        threading.Event().wait()
    return whole(rows, batching, device)

evaluate.make_micro_batch = make_micro_batch
watchdog.STALL_FLOOR_SECONDS = 2
"""
"""In its third micro-batch, before the first step."""


def test_watchdog_reports_an_evaluation_that_hangs(job: Job, parent: Parent) -> None:
    job = Job(job.volumes, training=(*TRAINING, ("microBatchSize", 1)))
    parent.before(job, "Train")
    hanging = parent.start(job, "Train", before=EVALUATION_HANGS)
    assert hanging.wait() == -signal.SIGSTOP
    hanging.send(signal.SIGKILL, signal.SIGCONT)
    hanging.wait()
    (line,) = (json.loads(line) for line in hanging.log.read_text().splitlines() if '"stacks"' in line)
    assert any("train/evaluate.py" in frame for frame in line["stacks"]["MainThread"])


def test_watchdog_gets_a_heartbeat_from_each_part_of_an_evaluation(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    signs: list[Activity | None] = []
    monkeypatch.setattr(Watchdog, "heartbeat", lambda self, **changes: signs.append(changes.get("activity")))
    job = Job(job.volumes, training=(*TRAINING, ("microBatchSize", 1), ("maxSteps", 1)))
    job.prepare()
    job.train()
    evaluation = [Activity.EVALUATING, *[None] * len(job.prepared().validation)]
    step = [Activity.TRAINING, None, Activity.SAVING]
    assert signs == [Activity.LOADING_MODEL, *evaluation, *step, *evaluation]


def test_watchdog_reports_a_step_that_hangs_and_sigterm_still_saves(job: Job, parent: Parent) -> None:
    job = Job(job.volumes, training=TRAINING)
    parent.before(job, "Train")
    hanging = parent.start(job, "Train", before=HANGS)
    assert hanging.wait() == -signal.SIGSTOP
    hanging.send(signal.SIGTERM, signal.SIGCONT)
    assert hanging.wait() == ExitCode.REQUEUE
    assert hanging.outcome.message == "Told to stop; step 6 of 15 is saved."
    (message,) = {report["message"] for report in hanging.events("report")} - {"report"}
    assert float(message.split()[3]) >= 3
    assert "_forward_and_backward" in message
    assert hanging.events(message.partition(";")[0])[0]["stacks"]["MainThread"][-1].endswith(" wait")
