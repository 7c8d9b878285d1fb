"""Training: exact losses, the same bits after every interruption, and an export that is what was trained."""

import json
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from sluice_api.artifacts import AdapterManifest, adapter_digest, model_fingerprint
from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode, StageOutcome
from sluice_trainer.errors import StageError
from sluice_trainer.train.batches import MicroBatch
from sluice_trainer.train.loss import TokenLoss
from sluice_trainer.train.weights.model import with_adapter
from tests.unit.trainer.jobs import REPOSITORY, Job, events

LONG = (("epochs", 30), ("checkpointEverySteps", 10))
"""150 steps: enough to be interrupted twice."""


def model_of(job: Job) -> PeftModel:
    base = AutoModelForCausalLM.from_pretrained(job.volumes / "models" / "tiny", dtype=torch.float32)
    return with_adapter(base, job.stage("Train").spec)


def wait_for_checkpoint(process: subprocess.Popen[str], step: int) -> None:
    next(event for event in events(process) if event["event"] == "checkpoint" and event["step"] >= step)


def end(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=110)
    return process.returncode


def test_loss_of_a_batch_is_the_sum_over_its_rows(job: Job) -> None:
    job.prepare()
    rows = [job.prepared().training[index] for index in range(8)]
    assert len({len(row.input_ids) for row in rows}) > 1
    model, cpu = model_of(job).eval(), torch.device("cpu")
    together = TokenLoss(model).summed(MicroBatch.of(rows, cpu))
    alone = torch.stack([TokenLoss(model).summed(MicroBatch.of([row], cpu)) for row in rows])
    torch.testing.assert_close(together, alone.sum(), rtol=1e-5, atol=1e-5)

    ids = torch.from_numpy(rows[0].input_ids).long().unsqueeze(0)
    labels = ids.masked_fill(torch.from_numpy(rows[0].loss_mask == 0), -100)
    reference = model(input_ids=ids, labels=labels).loss * int(rows[0].loss_mask.sum())
    torch.testing.assert_close(alone[0], reference, rtol=1e-5, atol=1e-5)


def test_micro_batch_size_does_not_change_the_result(job: Job) -> None:
    whole = replace(job, name="whole", training=(("epochs", 2),), spec=(("lora", {"rank": 8}),))
    parts = replace(whole, name="parts", training=(("epochs", 2), ("microBatchSize", 2)))
    losses = []
    for each in (whole, parts):
        each.prepare()
        losses.append(each.train().evaluation_loss_after)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_adapter_has_the_same_bits_after_two_interruptions(job: Job) -> None:
    undisturbed = replace(job, name="undisturbed", training=LONG)
    undisturbed.prepare()
    result = undisturbed.train()
    undisturbed.export()
    assert result.step == 150
    assert result.evaluation_loss_after < result.evaluation_loss_before - 0.5  # type: ignore[operator]

    disturbed = replace(job, name="disturbed", training=LONG)
    disturbed.prepare()
    terminated = disturbed.start("Train")
    wait_for_checkpoint(terminated, 10)
    terminated.terminate()
    assert end(terminated) == ExitCode.REQUEUE
    outcome = disturbed.outcome()
    assert outcome.reason == Reason.REQUEUED
    assert outcome.train is not None
    stopped_at = outcome.train.checkpoint_step
    assert stopped_at is not None
    assert 10 <= stopped_at < 150
    assert outcome.message == f"Told to stop; step {stopped_at} of 150 is saved."
    assert (disturbed.work / "checkpoints" / f"step-{stopped_at}" / "manifest.json").exists()

    killed = disturbed.start("Train", attempt=2)
    wait_for_checkpoint(killed, stopped_at + 20)
    killed.kill()
    assert end(killed) == -signal.SIGKILL

    last = disturbed.train()
    assert last.resumed_from is not None
    assert stopped_at + 20 <= last.resumed_from < 150
    assert last.evaluation_loss_before == result.evaluation_loss_before
    assert last.evaluation_loss_after == result.evaluation_loss_after
    disturbed.export()
    assert disturbed.adapter == undisturbed.adapter


def test_checkpoint_that_is_torn_is_skipped(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job = replace(job, training=(("epochs", 2), ("checkpointEverySteps", 5)))
    job.prepare()
    first = job.train()
    checkpoints = job.work / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["manifest.json", "step-10", "step-5"]

    good = (checkpoints / "step-10" / "state.safetensors").read_bytes()
    (checkpoints / "step-10" / "state.safetensors").write_bytes(good[:-4] + b"torn")
    capsys.readouterr()
    again = job.train()
    assert "checkpoint skipped" in capsys.readouterr().out
    assert (again.resumed_from, again.step) == (5, 10)
    assert again.evaluation_loss_after == first.evaluation_loss_after
    assert (checkpoints / "step-10" / "state.safetensors").read_bytes() == good


def test_complete_stages_are_not_done_again(job: Job) -> None:
    job = replace(job, training=(("epochs", 1),))
    job.prepare()
    assert job.train() == job.train()
    digest = job.export()
    (job.work / "checkpoints" / "manifest.json").unlink()
    assert job.export() == digest


def test_export_needs_a_completed_training(job: Job) -> None:
    job.prepare()
    with pytest.raises(StageError) as raised:
        job.export()
    assert raised.value.reason == Reason.CHECKPOINT_INVALID


def test_export_is_a_peft_adapter_that_others_may_read(job: Job) -> None:
    job.prepare()
    trained = job.train()
    digest = job.export()
    folder = job.work / "export"
    manifest = AdapterManifest.model_validate_json((folder / "manifest.json").read_bytes())
    assert manifest.digest == digest == adapter_digest(folder)
    assert manifest.base_model_fingerprint == model_fingerprint(job.volumes / "models" / "tiny")
    assert (manifest.rank, manifest.steps, manifest.job) == (8, 15, "default/job")
    assert manifest.evaluation_loss_after == trained.evaluation_loss_after
    assert manifest.chat_template == (folder / "chat_template.jinja").read_text()
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
    assert folder.stat().st_mode & 0o777 == 0o755

    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "pvc://models/tiny"
    assert config["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    base = AutoModelForCausalLM.from_pretrained(job.volumes / "models" / "tiny", dtype=torch.float32)
    rows = job.prepared().validation
    batch = MicroBatch.of([rows[index] for index in range(len(rows))], torch.device("cpu"))
    loaded = PeftModel.from_pretrained(base, folder).eval()
    loss = TokenLoss(loaded).summed(batch).item() / int(batch.loss_mask.sum())
    assert loss == pytest.approx(trained.evaluation_loss_after, rel=1e-5)


def test_base_model_that_has_changed_is_refused(job: Job) -> None:
    job.prepare()
    weights = job.volumes / "models" / "tiny" / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.unlink()
    weights.write_bytes(changed)
    with pytest.raises(StageError) as raised:
        job.train()
    assert raised.value.reason == Reason.MODEL_INVALID
    assert "have changed since the rows were prepared" in raised.value.message


def test_checkpoint_waits_for_another_save_that_goes_on(job: Job) -> None:
    """What SIGTERM does in the middle of a periodic save."""
    job = replace(job, training=(("epochs", 1),))
    job.prepare()
    job.train()
    checkpoints = job.checkpoints()
    step = checkpoints.newest_step()
    assert step is not None
    newest = checkpoints.read(step)
    checkpoints.durable_step = None
    began, go_on = threading.Event(), threading.Event()

    def slow() -> object:
        began.set()
        assert go_on.wait(10)
        return newest

    periodic = threading.Thread(target=checkpoints.save, args=(slow,))
    periodic.start()
    assert began.wait(10)
    last = threading.Thread(target=checkpoints.save, args=(lambda: newest,))
    last.start()
    last.join(0.1)
    assert last.is_alive()
    go_on.set()
    for thread in (periodic, last):
        thread.join(10)
    assert checkpoints.durable_step == newest.progress.step
    assert [path.name for path in (job.work / "checkpoints").glob("*step*")] == ["step-5"]


def test_sigterm_before_torch_is_imported_ends_at_once(job: Job) -> None:
    process = job.start("Train")
    assert next(events(process))["activity"] == "Starting"
    process.terminate()
    assert end(process) == ExitCode.REQUEUE
    assert job.outcome() == StageOutcome(reason=Reason.REQUEUED, message="Told to stop; there was nothing to save yet.")


def test_sigterm_ends_a_process_whose_main_thread_is_in_native_code(tmp_path: Path) -> None:
    program = """
import hashlib, os
from sluice_trainer.signals import StopSignal
from sluice_api.stages import TrainResult

def end(error, save):
    os.write(1, str(save().step).encode())
    os._exit(75)

stop = StopSignal()
stop.set_end_handler(end)
stop.set_save(lambda: TrainResult(step=7, total_steps=9))
os.write(1, b"working ")
hashlib.pbkdf2_hmac("sha256", b"one call", b"of many minutes", 2_000_000_000)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": f"{REPOSITORY}/operator:{REPOSITORY}/trainer_image"},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.read(8) == b"working "
    process.terminate()
    assert process.communicate(timeout=20)[0] == b"7"
    assert process.returncode == ExitCode.REQUEUE


def test_stage_error_becomes_an_outcome(job: Job) -> None:
    process = replace(job, dataset="datasets/none.jsonl").start("Prepare")
    assert end(process) == ExitCode.BAD_INPUT
    assert job.outcome().reason == Reason.DATASET_NOT_FOUND
    assert "pvc://datasets/none.jsonl: there is no such file" in job.outcome().message


def test_stage_spec_of_another_version_becomes_an_outcome(job: Job) -> None:
    process = job.start("Prepare", SLUICE_STAGE='{"stage": "Prepare", "later": 1}')
    assert end(process) == ExitCode.INTERNAL
    assert job.outcome().reason == Reason.TRAINER_FAILED
    assert "operator and image must match" in job.outcome().message
