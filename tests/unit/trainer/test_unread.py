"""Nobody reads what the trainer prints: a pager that waits, a terminal that is closed, a pipe whose reader has ended.

Training goes on where a reader may come back, and otherwise saves its state and ends, as on SIGTERM.
"""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sluice_api.stages import ExitCode
from sluice_trainer import logs
from sluice_trainer.local_run import _only_run
from tests.unit.trainer.jobs import Job
from tests.unit.trainer.test_local_run import command, document, environment

LONG = (("epochs", 1000), ("batchSize", 4), ("checkpointEverySteps", 50), ("dtype", "float32"))
"""Far more lines than a pipe holds, which is 64 KiB."""


def wait_for_step(folder: Path, step: int) -> None:
    """Wait until a checkpoint of this step, or a later one, is whole in a folder or below it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        saved = [int(path.parent.name.removeprefix("step-")) for path in folder.glob("**/step-*/manifest.json")]
        if max(saved, default=0) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"no checkpoint of step {step} in 120 s")


@pytest.fixture
def unread(job: Job) -> Iterator[tuple[Job, subprocess.Popen[str]]]:
    """Training whose output nobody reads."""
    job = replace(job, training=LONG)
    job.prepare()
    process = job.start("Train")
    yield job, process
    process.kill()
    process.wait()


def start_run(job: Job) -> subprocess.Popen[str]:
    """`run` of a job that takes long, with its output in a pipe."""
    file = job.volumes.parent / "finetunejob.yaml"
    file.write_text(json.dumps(document(training=dict(LONG))))
    return subprocess.Popen(command(job, file), env=environment(), stdout=subprocess.PIPE, text=True)


def saved_step(job: Job) -> int:
    outcome = job.outcome()
    assert outcome.train is not None, outcome
    assert outcome.train.checkpoint_step is not None
    assert (job.work / "checkpoints" / f"step-{outcome.train.checkpoint_step}" / "manifest.json").exists()
    return outcome.train.checkpoint_step


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 500), (signal.SIGHUP, 50)])
def test_training_goes_on_and_stops_though_nobody_reads(
    unread: tuple[Job, subprocess.Popen[str]], number: signal.Signals, step: int
) -> None:
    job, process = unread
    wait_for_step(job.work, step)
    process.send_signal(number)
    assert process.wait(60) == ExitCode.REQUEUE
    assert saved_step(job) >= step


def test_training_saves_its_state_and_ends_when_its_reader_is_gone(unread: tuple[Job, subprocess.Popen[str]]) -> None:
    job, process = unread
    wait_for_step(job.work, 50)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(60) == ExitCode.REQUEUE
    assert saved_step(job) >= 50


def test_nohup_means_what_it_says(job: Job) -> None:
    job = replace(job, training=(("epochs", 2), ("dtype", "float32")))
    job.prepare()
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup starts a program
    try:
        process = job.start("Train")
    finally:
        signal.signal(signal.SIGHUP, ignored)
    lines = iter(process.stdout or ())
    next(line for line in lines if '"event": "begin"' in line)
    process.send_signal(signal.SIGHUP)
    list(lines)
    assert process.wait(60) == ExitCode.DONE


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_local_run_whose_reader_ends_saves_its_state(job: Job) -> None:
    """run job | head -n 30"""
    process = start_run(job)
    assert process.stdout is not None
    next(line for line in process.stdout if '"event": "checkpoint"' in line)
    process.stdout.close()
    assert process.wait(60) == ExitCode.REQUEUE
    (work,) = (job.volumes / "adapters" / "out").iterdir()
    assert list(work.glob("checkpoints/step-*/manifest.json"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_local_run_ends_on_a_signal_though_nobody_reads(job: Job) -> None:
    """run job | less, and nobody pages on."""
    process = start_run(job)
    wait_for_step(job.volumes / "adapters", 500)
    process.terminate()
    assert process.wait(60) == ExitCode.REQUEUE


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_local_run_whose_output_can_not_be_written_says_so(job: Job) -> None:
    file = job.volumes.parent / "finetunejob.yaml"
    file.write_text(json.dumps(document()))
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            command(job, file), env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert ended.returncode == ExitCode.REQUEUE
    assert "The output can't be written (No space left on device). The stage saves what it has." in ended.stderr


@pytest.mark.parametrize("how", ["a file", "read-only"])
def test_local_run_whose_output_folder_can_not_be_made_is_refused_by_prepare(job: Job, how: str) -> None:
    with _only_run(Path("/sys/kernel/out") if how == "read-only" else job.volumes / job.dataset / "x") as held:
        assert held == ()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_local_run_of_a_job_that_runs_is_refused(job: Job) -> None:
    first = start_run(job)
    assert first.stdout is not None
    next(first.stdout)
    second = subprocess.run(first.args, env=environment(), capture_output=True, text=True, check=False)
    assert second.returncode == ExitCode.BAD_INPUT
    assert second.stderr.startswith(f"This job runs already, in process {first.pid}. Wait for its end or stop it")
    first.terminate()
    first.communicate(timeout=60)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Lines go into a pipe; gives its reading end."""
    reading, writing = os.pipe()
    monkeypatch.setattr(logs, "_LINES", logs._Lines(lambda: writing))
    yield reading
    os.close(writing)
    os.close(reading)


def read_lines(descriptor: int, last: str) -> list[str]:
    """All lines until one that has this text."""
    text = b""
    while last.encode() not in text or not text.endswith(b"\n"):
        text += os.read(descriptor, 65536)
    return text.decode().splitlines()


def test_lines_come_in_their_order_once_somebody_reads(pipe: int) -> None:
    for number in range(2000):
        logs.info("line", number=number, filling="é" * (number % 50))
    assert [json.loads(line)["number"] for line in read_lines(pipe, '"number": 1999')] == list(range(2000))
    logs.info("line", number=2000)
    assert json.loads(read_lines(pipe, "2000")[0])["number"] == 2000


def test_line_longer_than_a_pipe_comes_whole(pipe: int) -> None:
    logs.info("line", filling="x" * 200_000)
    logs.info("line", filling="end")
    first, _ = read_lines(pipe, "end")
    assert len(json.loads(first)["filling"]) == 200_000


def test_lines_that_nobody_reads_are_dropped_and_counted(pipe: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_MAX_WAITING_LINES", 100)
    for number in range(2000):
        logs.info("line", number=number)
    found = [json.loads(line) for line in read_lines(pipe, "lines dropped")]
    numbers = [line["number"] for line in found if line["event"] == "line"]  # reporters of other tests may write too
    assert numbers == sorted(numbers)
    assert numbers[-90:] == list(range(1910, 2000))
    (dropped,) = [line["count"] for line in found if line["event"] == "lines dropped"]
    assert 2000 - len(numbers) <= dropped <= 2010 - len(numbers)


def test_reader_that_is_gone_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    monkeypatch.setattr(logs, "_LINES", logs._Lines(lambda: writing))
    told = threading.Semaphore(0)
    logs.when_unread(told.release)
    os.close(reading)
    for _ in range(3):
        logs.info("line")
    assert told.acquire(timeout=10)
    assert not told.acquire(blocking=False)
    os.close(writing)


def test_path_of_a_stage_by_hand_is_told(tmp_path: Path) -> None:
    started = {key: value for key, value in environment().items() if key != "SLUICE_STAGE"}
    words = [command(Job(tmp_path), tmp_path)[0], "-m", "sluice_trainer", "train"]
    ended = subprocess.run(words, env=started, capture_output=True, text=True, check=False)
    assert ended.returncode == ExitCode.BAD_INPUT
    assert "By hand it is: python3 -m sluice_trainer run finetunejob.yaml --only train" in ended.stderr
