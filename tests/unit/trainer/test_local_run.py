"""`python3 -m sluice_trainer run finetunejob.yaml`: the whole of it on one machine, as a person would use it."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sluice_api.stages import ExitCode
from sluice_trainer.local_run import CannotRun, claim_folders, main, read_job
from sluice_trainer.loss_curve import LossCurve
from tests.object_store import SECRET
from tests.unit.trainer.jobs import REPOSITORY, Job

SPEC = {
    "model": {"uri": "pvc://models/tiny"},
    "dataset": {"uri": "pvc://datasets/rows.jsonl"},
    "output": {"uri": "pvc://adapters/out"},
    "lora": {"rank": 8},
    "training": {"dtype": "float32", "maxSteps": 4},
    "resources": {"gpus": 2},
    "scheduling": {"policy": "Preempt"},
}


def document(name: str = "tone", **spec: Any) -> dict[str, Any]:
    """A FineTuneJob as it is applied."""
    metadata = {"name": name}
    return {"apiVersion": "sluice.dev/v1alpha1", "kind": "FineTuneJob", "metadata": metadata, "spec": {**SPEC, **spec}}


@pytest.fixture
def write(job: Job) -> Callable[..., Path]:
    """Write documents beside the job's volumes."""

    def write(*documents: dict[str, Any], name: str = "finetunejob.yaml") -> Path:
        file = job.volumes.parent / name
        file.write_text(yaml.safe_dump_all(documents))
        return file

    return write


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": f"{REPOSITORY}/operator:{REPOSITORY}/trainer_image",
        "OMP_NUM_THREADS": "1",
    }


def command(job: Job, file: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "sluice_trainer", "run", str(file), "--volumes", str(job.volumes), *more]


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def step(number: int, loss: float) -> dict[str, Any]:
    return {"event": "step", "step": number, "loss": loss}


def measured(number: int, loss: float) -> dict[str, Any]:
    return {"event": "report", "step": number, "loss": 9.0, "evaluationLoss": loss}


def begins(resumed_from: int | None) -> dict[str, Any]:
    return {"event": "begin", "step": resumed_from or 0, "total": 9, "resumed_from": resumed_from}


@pytest.mark.parametrize(
    ("rule", "runs", "training", "evaluation"),
    [
        (
            "each step and each measurement is there once",
            [[step(1, 2.0), measured(1, 5.0), step(2, 1.0), measured(2, 5.0), measured(3, 4.0)]],
            {1: 2.0, 2: 1.0},
            {1: 5.0, 3: 4.0},
        ),
        (
            "a run that goes on goes on in the curve",
            [[begins(None), measured(0, 5.0), step(1, 2.0)], [begins(1), step(2, 1.5), measured(2, 5.0)]],
            {1: 2.0, 2: 1.5},
            {0: 5.0, 2: 5.0},
        ),
        (
            "of a step that is done again the later loss counts, and those after it are not there yet",
            [[begins(None), step(1, 2.0), step(2, 1.5), step(3, 1.4), measured(3, 5.0)], [begins(1), step(2, 1.6)]],
            {1: 2.0, 2: 1.6},
            {},
        ),
        (
            "training that begins anew has a curve of its own",
            [[begins(None), measured(0, 5.0), step(1, 2.0)], [begins(None), step(1, 7.0)]],
            {1: 7.0},
            {},
        ),
        ("a run that trains no more changes nothing", [[begins(None), step(1, 2.0)], []], {1: 2.0}, {}),
    ],
)
def test_loss_curve_of_several_runs(
    tmp_path: Path, rule: str, runs: list[Any], training: dict[int, float], evaluation: dict[int, float]
) -> None:
    file = tmp_path / "losses.jsonl"
    read = LossCurve(file)
    for run in runs:
        curve = LossCurve(file)
        for event in run:
            curve.take(event)
        read = LossCurve(file)
        assert (curve.training, curve.evaluation) == (read.training, read.evaluation)
    assert (read.training, read.evaluation) == (training, evaluation)


def test_loss_curve_skips_a_half_written_line(tmp_path: Path) -> None:
    (tmp_path / "losses.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert LossCurve(tmp_path / "losses.jsonl").training == {1: 2.0}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_local_run_of_all_stages_writes_a_report(job: Job, write: Callable[..., Path]) -> None:
    file = write({"kind": "ConfigMap"}, document())
    ended = subprocess.run(
        command(job, file), env=environment(), capture_output=True, text=True, check=True, timeout=300
    )
    (work,) = (job.volumes / "adapters" / "out").iterdir()

    events = lines(ended.stdout)
    assert [event["code"] for event in events if event["event"] == "end"] == [0, 0, 0]
    assert str(work / "export") in events[-1]["message"]
    assert (work / "export" / "adapter_model.safetensors").exists()
    assert (work / "loss.png").read_bytes().startswith(b"\x89PNG")
    report = (work / "report.md").read_text()
    assert report.startswith("# tone\n")
    assert "| steps | 4 |" in report
    assert re.search(r"\| loss on the held-out rows \| \d\.\d{4} before, \d\.\d{4} after \|", report)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_local_run_goes_on_after_a_stop(job: Job, write: Callable[..., Path]) -> None:
    training = {"dtype": "float32", "epochs": 120, "checkpointEverySteps": 5}
    file = write(document(training=training))
    first = subprocess.Popen(command(job, file), env=environment(), stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    next(event for event in map(json.loads, first.stdout) if event["event"] == "checkpoint")
    first.send_signal(signal.SIGINT)
    events, _ = first.communicate(timeout=60)
    assert first.returncode == ExitCode.REQUEUE
    (ended,) = [event for event in lines(events) if event["event"] == "end"]
    saved = ended["train"]["checkpointStep"]

    again = command(job, file, "--only", "train")
    second = subprocess.run(again, env=environment(), capture_output=True, text=True, check=True, timeout=300)
    begun = next(event for event in lines(second.stdout) if event["event"] == "begin")
    assert begun["resumed_from"] == saved >= 5
    (work,) = (job.volumes / "adapters" / "out").iterdir()
    curve = LossCurve(work / "losses.jsonl")
    assert (list(curve.training), list(curve.evaluation)) == ([*range(1, 601)], [0, 600])

    export = command(job, file, "--only", "export")
    subprocess.run(export, env=environment(), capture_output=True, check=True, timeout=300)
    report = (work / "report.md").read_text()
    assert "| rows | 36 to train on, 4 held out, 0 refused |" in report
    assert "| steps | 600 |" in report
    assert "| loss on the held-out rows | " in report
    assert "![loss by step](loss.png)" in report
    assert LossCurve(work / "losses.jsonl").training == curve.training


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_local_run_into_an_object_store_is_done_once(stored_job: Job, bucket: Path, write: Callable[..., Path]) -> None:
    """What a run has left there is found by the next one, and read by nobody who does not have the Secret."""
    file = write(document(output=dict(stored_job.spec)["output"]))
    first, second = (
        subprocess.run(
            command(stored_job, file), env=environment(), capture_output=True, text=True, check=True, timeout=300
        )
        for _ in range(2)
    )
    (export,) = (bucket / "out").glob("tone-*/export/attempt-*")
    assert {path.name for path in export.iterdir()} >= {"adapter_model.safetensors", "manifest.json"}
    for ended in (first, second):
        assert f"s3://{export.relative_to(bucket.parent)}" in lines(ended.stdout)[-1]["message"]
        assert SECRET not in ended.stdout + ended.stderr
    assert [event for event in lines(first.stdout) if event["event"] == "step"]
    assert not [event for event in lines(second.stdout) if event["event"] == "step"]
    (report,) = file.parent.glob("tone-*/report.md")
    assert "| steps | 4 |" in report.read_text()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_local_run_on_a_terminal(job: Job, write: Callable[..., Path]) -> None:
    """On a terminal: no JSON, but text and a bar."""
    file = write(document())
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 120))
    process = subprocess.Popen(command(job, file), env=environment(), stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:  # the other side is closed
            break
        seen += chunk
    assert process.wait(timeout=300) == 0
    shown = seen.decode()

    assert "{" not in shown  # nor any other JSON
    assert "36 rows to train on, 4 held out; " in shown
    assert re.search(r"Training:.*/4", shown)
    assert re.search(r"100%.*4/4", shown)
    assert re.search(r"loss on the held-out rows: \d\.\d{4} before, \d\.\d{4} after", shown)
    assert "The curve is" in shown


@pytest.mark.parametrize(
    ("documents", "words", "message"),
    [
        ([{"kind": "Pod"}], [], "has no FineTuneJob (kind: FineTuneJob). Start from examples/finetunejob.yaml."),
        ([document("a"), document("b")], [], "has the FineTuneJobs a, b. Choose one with --name."),
        ([document("a")], ["--name", "b"], "has the FineTuneJobs a. Choose one with --name."),
        (
            [document(lora={"rank": 513}, training={"epochs": 0, "lr": 1})],
            [],
            "tone:\n  spec.training.lr: not a field here; use training.learningRate (it is 1)\n  "
            "spec.lora.rank: write at most 512 (it is 513)\n  spec.training.epochs: write at least 1 (it is 0)",
        ),
        (
            [document(lora={"dropout": "1.0"}, training={"adamBeta1": "1.5"})],
            [],
            "tone:\n  spec.lora.dropout: must be less than 1, such as '0.1' (it is '1.0')\n  "
            "spec.training.adamBeta1: must be less than 1, such as '0.9' (it is '1.5')",
        ),
        ([document(model={"uri": "pvc://none/m"})], [], "The claim none is no folder here: "),
        ([document()], ["--claim", "models"], "--claim models: write a claim and its folder, such as --claim models="),
        ([document()], ["--claim", "modles=/tmp"], "--claim modles: the job names no such claim; it names models, dat"),
    ],
)
def test_local_run_refuses_a_wrong_file_or_command(
    job: Job,
    write: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    documents: list[dict[str, Any]],
    words: list[str],
    message: str,
) -> None:
    code = main(["run", str(write(*documents)), "--volumes", str(job.volumes), *words])
    assert code == ExitCode.BAD_INPUT
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("training.learning_rate", "not a field here; use training.learningRate"),
        ("training.lr", "not a field here; use training.learningRate"),
        ("training.max_seq_length", "not a field here; use training.maxSequenceLength"),
        ("lora.r", "not a field here; use lora.rank"),
        ("training.deepspeed", "not a field here. DeepSpeed is not used. The nearest is training.sharding."),
        ("lora.bias", "not a field here. vLLM can't load such an adapter."),
        ("training.group_by_length", "not a field here; leave it out. Rows are packed."),
        ("training.learningrate", "not a field here; did you mean training.learningRate?"),
        ("training.rank", "not a field here; did you mean lora.rank?"),
        ("batchSize", "not a field here; did you mean training.batchSize?"),
        ("methods", "not a field here; did you mean method?"),
        ("training.xyzzy", "not a field here"),
    ],
)
def test_unknown_field_of_another_tool_is_translated(write: Callable[..., Path], field: str, message: str) -> None:
    part, _, name = field.partition(".")
    spec: dict[str, Any] = {part: {name: "x"} if name else "x"}
    file = write(document(**spec))
    with pytest.raises(CannotRun) as raised:
        read_job(file)
    assert str(raised.value) == f"{file}, tone:\n  spec.{field}: {message} (it is 'x')"


def test_local_run_refuses_a_file_that_is_missing(job: Job) -> None:
    with pytest.raises(CannotRun, match=r"No such file or directory\. Name a file with a FineTuneJob\."):
        read_job(job.volumes / "none.yaml")
    broken = job.volumes / "broken.yaml"
    broken.write_text("a: [")
    with pytest.raises(CannotRun, match="is not YAML"):
        read_job(broken)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: &a {b: *a}", "a value is inside of itself"),
        ("a: &a [*a]", "a value is inside of itself"),
        ("a: " + "[" * 2000 + "]" * 2000, "is not YAML: "),
        ("1: a", "the key 1 is no text"),
        ("~: a", "the key None is no text"),
        ('a: "\\ud800"', "is not YAML: "),
        ("a: 1" + "0" * 5000, "is not YAML: "),
    ],
)
def test_local_run_refuses_yaml_that_is_no_json(job: Job, text: str, why: str) -> None:
    file = job.volumes / "job.yaml"
    file.write_text(text)
    with pytest.raises(CannotRun, match=re.escape(why)):
        read_job(file)


@pytest.mark.parametrize("metadata", ["[a]", "text", "{}", "{name: 08}", "null"])
def test_local_run_refuses_a_job_without_a_name(job: Job, metadata: str) -> None:
    file = job.volumes / "job.yaml"
    file.write_text(f"apiVersion: sluice.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {metadata}\nspec: {{}}\n")
    with pytest.raises(CannotRun, match=r"metadata(\.name)?: write "):
        read_job(file)


def test_local_run_takes_any_folder_as_a_claim(job: Job, write: Callable[..., Path], tmp_path: Path) -> None:
    found = claim_folders(read_job(write(document())), job.volumes, [f"adapters={tmp_path}/elsewhere"])
    assert found == {
        "models": job.volumes / "models",
        "datasets": job.volumes / "datasets",
        "adapters": tmp_path / "elsewhere",
    }
