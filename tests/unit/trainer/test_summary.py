"""What is left for a person to read when a training is over: on the terminal, in report.md, and in the model card."""

import io
import sys
from pathlib import Path

import pytest

from sluice_api.dataset import DatasetFormat
from sluice_api.stages import ExportResult, PrepareResult, StageOutcome, StageSpec, TrainResult
from sluice_trainer.export.card import model_card
from sluice_trainer.loss_curve import LossCurve
from sluice_trainer.prepared import PreparedManifest
from sluice_trainer.screen import Output, Terminal
from sluice_trainer.summary import write_summary
from tests.unit.trainer.jobs import Job

TRAINED = TrainResult(step=4, total_steps=4, evaluation_loss_before=5.5, evaluation_loss_after=1.25)
EXPORTED = ExportResult(uri="pvc://adapters/out", digest="sha256:12", rank=8, size_bytes=1234)


def found(overlong: int) -> PrepareResult:
    return PrepareResult(
        rows=36, validation_rows=4, refused_rows=1, overlong_rows=overlong, tokens=2000, loss_tokens=900, steps=4
    )


def manifest(result: PrepareResult) -> PreparedManifest:
    return PreparedManifest(
        plan="", inputs={}, settings={}, files={}, result=result, row_format=DatasetFormat.MESSAGES, chat_template="",
        base_model_uri="", base_model_revision="", base_model_fingerprint="", seed=1,
    )  # fmt: skip


def summary(folder: Path, stage: StageSpec, losses: int, overlong: int = 0) -> tuple[str, str]:
    """What write_summary returns for a training with so many losses, and the report."""
    (folder / "prepared").mkdir()
    (folder / "prepared" / "manifest.json").write_text(manifest(found(overlong)).to_json())
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "manifest.json").write_text(f'{{"plan": "", "result": {TRAINED.to_json()}}}')
    curve = LossCurve(folder / "losses.jsonl")
    for step in range(1, losses + 1):
        curve.take({"event": "step", "step": step, "loss": 1.0})
    printed = write_summary(folder, stage, [StageOutcome(reason="Done", export=EXPORTED)], curve, seconds=7)
    return printed, (folder / "report.md").read_text()


@pytest.mark.parametrize(
    ("overlong", "terminal", "report", "card"),
    [
        (0, "4 held out, 1 refused; 2,000", "4 held out, 1 refused |", "36 rows, 4 held out |"),
        (
            3,
            "4 held out, 1 refused, 3 too long; 2,000",
            "4 held out, 1 refused, 3 too long (Split) |",
            "36 rows, 4 held out, 3 too long (Split) |",
        ),
    ],
)
def test_summary_counts_overlong_rows(
    volumes: Path, tmp_path: Path, overlong: int, terminal: str, report: str, card: str
) -> None:
    stage = Job(volumes, training=(("overlongRows", "Split"),)).stage("Export")
    shown = io.StringIO()
    Terminal(Output(shown), LossCurve(tmp_path / "none")).done(StageOutcome(reason="Done", prepare=found(overlong)))
    assert terminal in shown.getvalue()
    assert report in summary(tmp_path, stage, 0, overlong)[1]
    assert card in model_card(stage, manifest(found(overlong)), TRAINED)


@pytest.mark.parametrize(
    ("uri", "base"),
    [
        ("hf://org/name@main", "org/name"),
        ("hf://org/name", "org/name"),
        ("s3://models/name", "s3://models/name"),
        ("pvc://models/tiny", "pvc://models/tiny"),
    ],
)
def test_model_card_names_the_base_model_as_the_hub_does(volumes: Path, uri: str, base: str) -> None:
    stage = Job(volumes, spec=(("model", {"uri": uri}),)).stage("Export")
    assert model_card(stage, manifest(found(0)), TRAINED).startswith(f"---\nbase_model: {base}\nlibrary_name: peft\n")


def test_summary_is_of_the_whole_job(volumes: Path, tmp_path: Path) -> None:
    printed, report = summary(tmp_path, Job(volumes).stage("Export"), 2)
    assert printed.endswith(f"The curve is   {tmp_path}/loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert report == (
        "# job\n\n| | |\n|---|---|\n"
        "| base model | pvc://models/tiny |\n| dataset | pvc://datasets/rows.jsonl |\n| method | LoRA, rank 8 |\n"
        "| rows | 36 to train on, 4 held out, 1 refused |\n| tokens | 2,000 a pass, 900 of them in the loss |\n"
        "| steps | 4 |\n| loss on the held-out rows | 5.5000 before, 1.2500 after |\n"
        "| adapter | export/, 1,234 bytes, sha256:12 |\n| time | 7 s in this run |\n\n![loss by step](loss.png)\n"
    )


def test_summary_without_matplotlib_says_what_draws_the_curve(
    volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    printed, report = summary(tmp_path, Job(volumes).stage("Export"), 2)
    last = printed.splitlines()[-1]
    assert last == f"The losses are {tmp_path}/losses.jsonl (pip install matplotlib, and there is a picture too)"
    assert "loss.png" not in report


def test_summary_without_losses_has_no_picture(volumes: Path, tmp_path: Path) -> None:
    (tmp_path / "loss.png").write_bytes(b"of an earlier version")
    printed, _ = summary(tmp_path, Job(volumes).stage("Export"), 0)
    assert printed.splitlines()[-1] == f"The report is  {tmp_path}/report.md"
    assert (tmp_path / "loss.png").read_bytes() == b"of an earlier version"
