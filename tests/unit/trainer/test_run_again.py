"""The same job a second time, as on a machine of one's own, where file, rows and model may have been edited since.

What was made stays if nothing has changed that decides it. Otherwise it is made anew, from the rows to the export, and
a log line says why.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sluice_api.artifacts import AdapterManifest, file_digest
from sluice_api.stages import TrainResult
from sluice_trainer import durable
from sluice_trainer.errors import StageError
from tests.unit.trainer.jobs import ROWS, Job, chat, write_rows

FEW = (("dtype", "float32"), ("maxSteps", 3))


def run(job: Job) -> TrainResult:
    job.prepare()
    result = job.train()
    job.export()
    return result


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.unlink()  # it may be a link to what other tests have
    path.write_text(text.replace(old, new))


def other_rows(job: Job) -> Job:
    write_rows(job.volumes / "datasets" / "rows.jsonl", [*ROWS[:-1], chat("What is new?", "This is.")])
    return job


def other_template(job: Job) -> Job:
    edit(job.volumes / "models" / "tiny" / "chat_template.jinja", "<|im_end|>\n", "<|im_end|>\n\n")
    return job


def other_model(job: Job) -> Job:
    edit(job.volumes / "models" / "tiny" / "config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05')
    return job


def other_learning_rate(job: Job) -> Job:
    return replace(job, training=(*FEW, ("learningRate", "1e-3")))


def other_rank(job: Job) -> Job:
    return replace(job, spec=(("lora", {"rank": 32, "dropout": "0.1"}),))


def warnings(text: str) -> list[str]:
    events = [json.loads(line) for line in text.splitlines()]
    return [f"{event['event']}: {event['why']}" for event in events if event["level"] == "WARNING" and "why" in event]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (other_rows, "the dataset changed since the last run"),
        (other_template, "the model's tokenizer or chat template changed since the last run"),
        (other_model, "the base model changed since the last run"),
        (other_learning_rate, "training.learningRate was the default and is 1e-3"),
        (other_rank, "lora.rank was 8 and is 32"),
    ],
)
@pytest.mark.parametrize("stopped", [False, True], ids=["complete", "stopped"])
def test_run_again_after_an_edit_trains_anew(
    job: Job, capsys: pytest.CaptureFixture[str], change: Callable[[Job], Job], why: str, *, stopped: bool
) -> None:
    job = replace(job, training=FEW)
    run(job)
    if stopped:  # as if before its end: a checkpoint, and nothing that says that training is complete
        (job.work / "checkpoints" / "manifest.json").unlink()
    before = job.adapter
    capsys.readouterr()

    edited = change(job)
    result = run(edited)
    assert (result.resumed_from, result.step) == (None, 3)
    said = warnings(capsys.readouterr().out)
    assert f"prepared anew: {why}; so what was made of them is not used" in said
    assert any(line.startswith("checkpoint skipped: of other settings or rows") for line in said)
    assert edited.adapter != before
    manifest = durable.read_manifest(edited.work / "export", AdapterManifest)
    assert manifest is not None
    assert manifest.rank == edited.stage("Train").spec.lora.rank
    assert manifest.plan == edited.prepared().manifest.plan


def test_run_again_without_an_edit_changes_nothing(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job = replace(job, training=FEW)
    first = run(job)
    written = {path: path.stat().st_mtime_ns for path in job.work.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run(job) == first
    assert {path: path.stat().st_mtime_ns for path in job.work.rglob("*") if path.is_file()} == written
    assert '"event": "step"' not in capsys.readouterr().out


def test_settings_that_decide_no_bit_are_no_edit(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job = replace(job, training=FEW)
    first = run(job)
    capsys.readouterr()
    assert run(replace(job, training=(*FEW, ("keepCheckpoints", 5), ("checkpointEverySteps", 1)))) == first
    assert '"event": "step"' not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("README.txt", "another"),
        ("trainer_state.json", "{}"),
        ("out/manifest.json", "{}"),
        ("generation_config.json", '{"temperature": 0.1, "eos_token_id": EOS}'),
    ],
)
def test_files_that_decide_nothing_are_no_edit(
    job: Job, capsys: pytest.CaptureFixture[str], file: str, content: str
) -> None:
    job = replace(job, training=FEW)
    first = run(job)
    path = job.volumes / "models" / "tiny" / file
    end = json.loads((path.parent / "generation_config.json").read_text())["eos_token_id"] if "EOS" in content else ""
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(content.replace("EOS", str(end)))
    capsys.readouterr()
    assert run(job) == first
    assert '"event": "step"' not in capsys.readouterr().out


def test_checkpoint_of_other_layers_is_refused(job: Job) -> None:
    """As a version of the trainer left it that chose other layers by default."""
    job = replace(job, training=(*FEW, ("checkpointEverySteps", 1)))
    run(job)
    checkpoints = job.work / "checkpoints"
    (checkpoints / "manifest.json").unlink()
    newest = checkpoints / "step-3"
    tensors = load_file(newest / "state.safetensors")
    tensors["weight.another.layer"] = torch.zeros(2)
    save_file(tensors, newest / "state.safetensors")
    fields = json.loads((newest / "manifest.json").read_text())
    fields["files"]["state.safetensors"] = file_digest(newest / "state.safetensors")
    del fields["sha256"]
    (newest / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(StageError, match="trains other layers than this version of the trainer does, such as another"):
        job.train()
