"""Checkpoints on disks that lose, tear and refuse."""

import errno
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from prometheus_client import REGISTRY
from safetensors import SafetensorError
from safetensors.torch import save_file

from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode, TrainResult
from sluice_trainer import durable
from sluice_trainer.errors import StageError
from sluice_trainer.train.checkpoints.checkpoint import Checkpoints
from sluice_trainer.train.checkpoints.state import Progress, Snapshot
from tests.unit.trainer.jobs import Job


def state(step: int) -> Snapshot:
    return Snapshot(Progress(step=step, total_steps=100, learning_rate=0.1), {"weight.a": torch.full((64,), step)})


def checkpoints_of(job: Job) -> Checkpoints:
    return Checkpoints(job.stage("Train"), plan=f"the plan of {job.name}")


def saved(job: Job, *steps: int) -> Checkpoints:
    checkpoints = checkpoints_of(job)
    for step in steps:
        checkpoints.save(partial(state, step))
    return checkpoints


def names(job: Job) -> list[str]:
    return sorted(path.name for path in (job.work / "checkpoints").iterdir())


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def of_another_job(folder: Path) -> None:
    other = Job(folder.parents[4], name="other")
    saved(other, 10)
    shutil.rmtree(folder)
    shutil.copytree(other.work / "checkpoints" / "step-10", folder)


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def unreadable(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("what", "damage", "why"),
    [
        ("tensors are cut", lambda folder: cut_in_half(folder / "state.safetensors"), "state.safetensors is missing"),
        ("a bit of the tensors", lambda folder: flip_a_bit(folder / "state.safetensors"), "state.safetensors is"),
        ("a bit of the progress", lambda folder: flip_a_bit(folder / "state.json"), "state.json is missing or damaged"),
        ("no tensors", lambda folder: (folder / "state.safetensors").unlink(), "state.safetensors is missing"),
        ("no progress", lambda folder: (folder / "state.json").unlink(), "state.json is missing or damaged"),
        ("no manifest", lambda folder: (folder / "manifest.json").unlink(), "no manifest.json"),
        (
            "the manifest is cut",
            lambda folder: cut_in_half(folder / "manifest.json"),
            "no manifest.json, or a torn one",
        ),
        ("the manifest is empty", lambda folder: os.truncate(folder / "manifest.json", 0), "or a torn one"),
        ("the disk refuses to read", lambda folder: unreadable(folder / "manifest.json"), "can't be read: [Errno 21]"),
        (
            "a bit of the manifest's plan",
            lambda folder: rewrite(folder / "manifest.json", "the plan of job", "the plan of jpb"),
            "no manifest.json, or a torn one",
        ),
        ("of another job", of_another_job, "of other settings or rows"),
        ("under another step's name", lambda folder: shutil.copytree(folder, folder.with_name("step-90")), "another"),
    ],
)
def test_checkpoint_that_is_damaged_is_skipped_with_a_log_line(
    job: Job, capsys: pytest.CaptureFixture[str], what: str, damage: Callable[[Path], object], why: str
) -> None:
    saved(job, 5, 10)
    damage(job.work / "checkpoints" / "step-10")
    checkpoints = checkpoints_of(job)
    step = 10 if what == "under another step's name" else 5
    assert checkpoints.newest_step() == step
    newest = checkpoints.read(step)
    assert newest.progress.step == step
    assert torch.equal(newest.tensors["weight.a"], torch.full((64,), newest.progress.step))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "checkpoint skipped" in line]
    assert why in line


@pytest.mark.parametrize(
    ("kept", "before", "damaged", "then", "left"),
    [
        (2, (5, 10), (), (15,), ["step-10", "step-15"]),
        (1, (5, 10), (), (15,), ["step-15"]),
        (3, (5, 10), (), (15, 20), ["step-10", "step-15", "step-20"]),
        (1, (5, 50), (50,), (6,), ["step-6"]),
        (2, (5, 50), (50,), (6,), ["step-5", "step-6"]),
        (2, (40, 50), (40, 50), (6,), ["step-6"]),
    ],
)
def test_keep_checkpoints_keeps_the_newest_whole_ones(
    job: Job, kept: int, before: tuple[int, ...], damaged: tuple[int, ...], then: tuple[int, ...], left: list[str]
) -> None:
    job = replace(job, training=(("keepCheckpoints", kept),))
    saved(job, *before)
    for step in damaged:
        cut_in_half(job.work / "checkpoints" / f"step-{step}" / "state.safetensors")
    checkpoints = checkpoints_of(job)
    if (newest := checkpoints.newest_step()) is not None:
        checkpoints.read(newest)
    for step in then:
        checkpoints.save(partial(state, step))
    assert names(job) == left


def by_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"part of it")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("sluice_trainer.train.checkpoints.checkpoint.save_file", full)


def by_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """As file systems do that are full elsewhere."""

    def full(path: Path) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(path))

    monkeypatch.setattr(durable, "_sync", full)


def by_a_broken_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(durable, "_sync", broken)


REFUSALS = pytest.mark.parametrize(
    ("refuse", "why"),
    [
        (by_the_file, "No space left on device"),
        (by_fsync, "Disk quota exceeded"),
        (by_a_broken_disk, "Input/output error"),
    ],
)


@REFUSALS
def test_checkpoint_in_background_that_fails_does_not_end_training(
    job: Job, capsys: pytest.CaptureFixture[str], refuse: Callable[[pytest.MonkeyPatch], None], why: str
) -> None:
    failed = REGISTRY.get_sample_value("sluice_trainer_failed_saves_total") or 0
    checkpoints = saved(job, 5, 10)
    with pytest.MonkeyPatch.context() as patch:
        refuse(patch)
        assert checkpoints.save_in_background(lambda: state(15))
        join_the_writer()
    assert REGISTRY.get_sample_value("sluice_trainer_failed_saves_total") == failed + 1
    assert "Step 15 could not be saved; step 10 is durable. " in (out := capsys.readouterr().out)
    assert '"event": "checkpoint failed"' in out
    assert why in out
    assert names(job) == ["step-10", "step-5"]
    assert checkpoints.durable_step == 10
    assert (checkpoints.unsaved or "").startswith("Step 15 could not be saved; step 10 is durable. ")

    assert checkpoints.save_in_background(lambda: state(20))
    join_the_writer()
    assert checkpoints.unsaved is None
    assert names(job) == ["step-10", "step-20"]
    assert checkpoints.durable_step == 20


@REFUSALS
def test_checkpoint_at_the_end_that_fails_is_an_error(
    job: Job, refuse: Callable[[pytest.MonkeyPatch], None], why: str
) -> None:
    job = replace(job, training=(("epochs", 1), ("checkpointEverySteps", 100)))
    job.prepare()
    with pytest.MonkeyPatch.context() as patch:
        refuse(patch)
        with pytest.raises(StageError) as raised:
            job.train()
    assert (raised.value.reason, raised.value.code) == (Reason.OUTPUT_NOT_WRITABLE, ExitCode.INTERNAL)
    assert raised.value.message.startswith("Step 5 could not be saved; no step is durable. ")
    assert why in raised.value.message
    assert checkpoints_of(job).completed() is None
    assert names(job) == []
    assert job.train().step == 5


def test_checkpoint_is_written_in_background_one_at_a_time(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    began, go_on = threading.Event(), threading.Event()
    copies: list[int] = []

    def slow(tensors: dict[str, torch.Tensor], path: Path) -> None:
        began.set()
        assert go_on.wait(10)
        save_file(tensors, path)

    def copied(step: int) -> Snapshot:
        copies.append(step)
        return state(step)

    monkeypatch.setattr("sluice_trainer.train.checkpoints.checkpoint.save_file", slow)
    checkpoints = saved(job)
    assert checkpoints.save_in_background(partial(copied, 5))
    assert began.wait(10)
    assert not checkpoints.save_in_background(partial(copied, 6))
    assert (copies, checkpoints.durable_step) == ([5], None)
    go_on.set()
    checkpoints.save(partial(copied, 7))
    assert (copies, checkpoints.durable_step, names(job)) == ([5, 7], 7, ["step-5", "step-7"])


def test_export_reads_only_the_weights_of_a_checkpoint(job: Job) -> None:
    """The optimizer's moments are twice as many bytes."""
    job.prepare()
    result = job.train()
    checkpoints = job.checkpoints()
    kinds = {name.split(".", maxsplit=1)[0] for name in checkpoints.read(result.result_step).tensors}
    assert {"weight", "exp_avg", "exp_avg_sq"} <= kinds
    _, state = checkpoints.trained()
    assert {name.split(".", maxsplit=1)[0] for name in state.tensors} == {"weight"}


def test_checkpoint_is_never_replaced_by_an_older_state(job: Job) -> None:
    checkpoints = saved(job, 10)
    checkpoints.save(lambda: state(8))
    assert (names(job), checkpoints.durable_step) == (["step-10"], 10)


def join_the_writer() -> None:
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join(10)


def test_completed_training_with_any_bit_flipped_is_not_complete(job: Job) -> None:
    checkpoints = saved(job, 10)
    checkpoints.complete(TrainResult(step=10, total_steps=10, evaluation_loss_before=5.5, evaluation_loss_after=1.25))
    manifest = job.work / "checkpoints" / "manifest.json"
    whole = manifest.read_bytes()
    assert checkpoints.completed() is not None
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        manifest.write_bytes(flipped)
        assert checkpoints.completed() is None, (place, bytes(flipped))


def test_tensors_that_somebody_puts_into_a_checkpoint_are_not_read(job: Job) -> None:
    checkpoints = saved(job, 10)
    save_file({"weight.a": torch.zeros(64)}, job.work / "checkpoints" / "step-10" / "another.safetensors")
    assert checkpoints.newest_step() == 10
    assert torch.equal(checkpoints.read(10).tensors["weight.a"], torch.full((64,), 10))
