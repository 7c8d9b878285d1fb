"""The final report of a run without a cluster: report.md and, where matplotlib is installed, loss.png beside it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from sluice_api.artifacts import MANIFEST
from sluice_api.finetunejob import FineTuneJobSpec
from sluice_api.model import Model
from sluice_api.sources import is_object
from sluice_api.stages import ExportResult, PrepareResult, StageOutcome, StageSpec, TrainResult
from sluice_api.training import Method
from sluice_trainer.loss_curve import LossCurve

M = TypeVar("M", bound=Model)


def write_summary(
    work: Path, job: StageSpec, outcomes: Sequence[StageOutcome], curve: LossCurve, seconds: float
) -> str:
    """Write report and picture into the job's own folder. Returns a few lines that say where everything is.

    Args:
        work: The folder.
        job: The job.
        outcomes: Of the stages that this run has done, the last of which is Export. The others are described by what an
            earlier run left on this machine, if it did.
        curve: The losses.
        seconds: How long this run has taken.
    """
    exported = outcomes[-1].export
    if exported is None:
        raise ValueError("Export is the stage that ends a run")
    picture = work / "loss.png"
    drawn = draw(picture, job.name, curve)
    prepared = next((o.prepare for o in outcomes if o.prepare), None) or _result(work / "prepared", PrepareResult)
    trained = next((o.train for o in outcomes if o.train), None) or _result(work / "checkpoints", TrainResult)
    rows = _rows(job.spec, prepared, trained, exported) | {"time": f"{seconds:.0f} s in this run"}
    report = work / "report.md"
    report.write_text(_page(job.name, rows, drawn), encoding="utf-8")
    result = "The model is in  " if job.spec.method is Method.FULL else "The adapter is in"
    place = exported.uri if is_object(exported.uri) else work / "export"
    lines = [f"{result} {place}", f"The report is  {report}"]
    if drawn:
        lines.append(f"The curve is   {picture}")
    elif curve.training:
        lines.append(f"The losses are {work / 'losses.jsonl'} (pip install matplotlib, and there is a picture too)")
    return "\n".join(lines)


def _result(folder: Path, kind: type[M]) -> M | None:
    """Read a stage's result from its manifest, as JSON: the manifests' own types would import torch."""
    manifest = folder / MANIFEST
    return kind.model_validate(json.loads(manifest.read_bytes())["result"]) if manifest.exists() else None


def _rows(
    spec: FineTuneJobSpec, prepared: PrepareResult | None, trained: TrainResult | None, exported: ExportResult
) -> dict[str, str]:
    whole = spec.method is Method.FULL
    rows = {
        "base model": spec.model.uri,
        "dataset": ", ".join(spec.dataset.shown),
        "method": spec.method if whole else f"{spec.method}, rank {exported.rank}",
    }
    if prepared is not None:
        policy = spec.training.overlong_rows
        overlong = f", {prepared.overlong_rows} too long ({policy})" if prepared.overlong_rows else ""
        rows["rows"] = (
            f"{prepared.rows} to train on, {prepared.validation_rows} held out, {prepared.refused_rows} refused"
            f"{overlong}"
        )
        rows["tokens"] = f"{prepared.tokens:,} a pass, {prepared.loss_tokens:,} of them in the loss"
    if trained is not None:
        best = f"; the best was step {trained.result_step}" if trained.result_step != trained.step else ""
        rows["steps"] = f"{trained.step}{best}"
        if trained.evaluation_loss_before is not None and trained.evaluation_loss_after is not None:
            before, after = trained.evaluation_loss_before, trained.evaluation_loss_after
            rows["loss on the held-out rows"] = f"{before:.4f} before, {after:.4f} after"
    rows["model" if whole else "adapter"] = f"export/, {exported.size_bytes:,} bytes, {exported.digest}"
    return rows


def _page(name: str, rows: dict[str, str], drawn: bool) -> str:
    table = "\n".join(f"| {what} | {value} |" for what, value in rows.items())
    picture = "\n\n![loss by step](loss.png)" if drawn else ""
    return f"# {name}\n\n| | |\n|---|---|\n{table}{picture}\n"


def draw(file: Path, title: str, curve: LossCurve) -> bool:
    """Draw the losses by step; False when there are none, or no matplotlib: the trainer's image does not have it."""
    if not curve.training:
        return False
    try:
        import matplotlib as mpl
        from matplotlib import pyplot as plt
    except ImportError:
        return False
    mpl.use("Agg")
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for losses, label, style in ((curve.training, "training", "-"), (curve.evaluation, "held out", "o--")):
        if losses:
            axes.plot(sorted(losses), [losses[step] for step in sorted(losses)], style, label=label)
    axes.set(title=title, xlabel="step", ylabel="loss, nats")
    axes.legend(frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return True
