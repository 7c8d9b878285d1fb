"""spec.resumeFrom: a new job goes on from an older one's folder to the same bits, or Prepare refuses it."""

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode
from sluice_trainer.errors import StageError
from tests.unit.trainer.conftest import new_volumes
from tests.unit.trainer.forked import TRAINING, Parent, WholeJob, run_to_the_end
from tests.unit.trainer.jobs import ROWS, Job, chat, write_rows

FROM = ("resumeFrom", "pvc://adapters/out/job-12345678")


@pytest.fixture(scope="module")
def killed_work(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, parent: Parent) -> Path:
    """The volume of a job that was killed after step 10, with a checkpoint of step 8."""
    volumes = new_volumes(tmp_path_factory.mktemp("left"), tiny_model)
    killed = Job(volumes, training=TRAINING)
    parent.before(killed, "Train")
    assert parent.start(killed, "Train", "update-done:10:SIGKILL").wait() == -signal.SIGKILL
    return volumes / "adapters"


@pytest.fixture
def older_job(job: Job, killed_work: Path) -> Job:
    """The killed job."""
    shutil.copytree(killed_work, job.volumes / "adapters", dirs_exist_ok=True)
    return replace(job, training=TRAINING)


def newer_job(older_job: Job, **changes: Any) -> Job:
    """A job of another name that goes on from the killed one."""
    return replace(older_job, name="newer", spec=(FROM, *changes.pop("spec", ())), **changes)


def test_resume_from_another_job_has_the_bits_of_an_undisturbed_one(
    older_job: Job, parent: Parent, undisturbed: WholeJob
) -> None:
    job = newer_job(older_job, training=(*TRAINING, ("keepCheckpoints", 1)))
    whole = run_to_the_end(parent, job)
    assert [event["resumed_from"] for run in whole.runs for event in run.events("begin")] == [8]
    assert whole.losses == {step: loss for step, loss in undisturbed.losses.items() if step > 8}
    assert whole.digest == undisturbed.digest
    assert (older_job.work / "checkpoints" / "step-8" / "manifest.json").is_file(), "the older job keeps what it has"
    assert parent.start(job, "Prepare").wait() == ExitCode.DONE, "again, and nothing is copied anew"


def other_rows(job: Job) -> Job:
    write_rows(job.volumes / "datasets" / "rows.jsonl", [*ROWS[:-1], chat("What is new?", "This is.")])
    return job


def older_version(job: Job) -> Job:
    """As a version left it whose manifests had no checksum either."""
    manifest = job.volumes / "adapters" / "out" / "job-12345678" / "prepared" / "manifest.json"
    fields = json.loads(manifest.read_text()) | {"format": "sluice.prepared/v3"}
    manifest.write_text(json.dumps({name: fields[name] for name in fields if name not in ("settings", "sha256")}))
    return job


def torn(job: Job) -> Job:
    for tensors in (job.volumes / "adapters").rglob("state.safetensors"):
        tensors.write_bytes(tensors.read_bytes()[:-1])
    return job


def linked(job: Job) -> Job:
    """A link is followed nowhere: it could lead to what the writer of the folder may not read."""
    for tensors in (job.volumes / "adapters").rglob("state.safetensors"):
        tensors.rename(tensors.with_name("elsewhere"))
        tensors.symlink_to(tensors.with_name("elsewhere"))
    return job


def another_model(job: Job) -> Job:
    folder = job.volumes / "models" / "tiny"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()  # a link to what other tests have
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 20_000.0}))
    return job


def elsewhere(job: Job) -> Job:
    return replace(job, spec=(("resumeFrom", "pvc://adapters/out/nobody-12345678"),))


def no_checkpoint(job: Job) -> Job:
    shutil.rmtree(job.volumes / "adapters" / "out" / "job-12345678" / "checkpoints")
    return job


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda job: replace(job, training=(*TRAINING, ("learningRate", "1e-3"))),
         "training.learningRate is 1e-3 here and the default there. Set it to what it is there."),
        (lambda job: replace(job, spec=(FROM, ("lora", {"rank": 16}))),
         "lora.dropout is the default here and 0.1 there"),
        (lambda job: replace(job, spec=(FROM, ("method", "Full"))), "method is Full here and LoRA there"),
        (other_rows, "it was trained on other rows"),
        (another_model, "it was trained from another base model, pvc://models/tiny"),
        (older_version, "its rows can't be compared: another version of Sluice prepared them (sluice.prepared/v3; "),
        (no_checkpoint, "it has no whole checkpoint"),
        (torn, "it has no whole checkpoint"),
        (linked, "it has no whole checkpoint"),
        (elsewhere, "there is no such folder. adapters/out has: job-12345678, newer-12345678."),
    ],
)  # fmt: skip
def test_resume_from_a_job_that_differs_is_refused(older_job: Job, change: Callable[[Job], Job], says: str) -> None:
    job = change(newer_job(older_job))
    with pytest.raises(StageError) as raised:
        job.prepare()
    assert (raised.value.reason, raised.value.code) == (Reason.RESUME_REFUSED, ExitCode.BAD_INPUT)
    assert raised.value.message.startswith("resumeFrom pvc://adapters/out/")
    assert says in raised.value.message
    assert not (job.work / "prepared").exists(), "so no later stage can begin"
    assert not Path(job.work / "checkpoints").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda job: replace(job, training=(*TRAINING, ("learningRate", "1e-3"))),
        another_model,
        older_version,
        no_checkpoint,
        elsewhere,
    ],
)
def test_resume_is_refused_before_rows_are_made(
    older_job: Job, change: Callable[[Job], Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may take an hour."""
    monkeypatch.setattr("sluice_trainer.data.prepare.collect", None)
    with pytest.raises(StageError) as raised:
        change(newer_job(older_job)).prepare()
    assert raised.value.reason == Reason.RESUME_REFUSED
