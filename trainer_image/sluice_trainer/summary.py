"""The final report of a run without a cluster: report.md and, where matplotlib is installed, loss.png beside it."""

from collections.abc import Mapping
from pathlib import Path

from sluice_api.stages import Stage, StageOutcome, StageSpec
from sluice_api.training import Method
from sluice_trainer.screen import Curve


def write_summary(
    work: Path, job: StageSpec, outcomes: Mapping[Stage, StageOutcome], curve: Curve, seconds: float
) -> str:
    """Write both into the job's own folder; where everything is, in a few lines."""
    drawn = draw(work / "loss.png", job.name, curve)
    report = work / "report.md"
    report.write_text(_report(job, outcomes, seconds, drawn), encoding="utf-8")
    result = "The model is in  " if job.spec.method is Method.FULL else "The adapter is in"
    lines = [f"{result} {work / 'export'}", f"The report is  {report}"]
    if drawn:
        lines.append(f"The curve is   {work / 'loss.png'}")
    return "\n".join(lines)


def _report(job: StageSpec, outcomes: Mapping[Stage, StageOutcome], seconds: float, drawn: bool) -> str:
    spec = job.spec
    rows = {"base model": spec.model.uri, "dataset": spec.dataset.uri}
    whole = spec.method is Method.FULL
    rows["method"] = spec.method if whole else f"{spec.method}, rank {spec.lora.rank}"
    if (told := outcomes.get(Stage.PREPARE)) and (found := told.prepare):
        rows["rows"] = f"{found.rows} to train on, {found.validation_rows} held out, {found.refused_rows} refused"
        rows["tokens"] = f"{found.tokens:,} a pass, {found.learnt_tokens:,} of them learnt"
    if (told := outcomes.get(Stage.TRAIN)) and (trained := told.train):
        best = f"; the best was step {trained.result_step}" if trained.result_step != trained.step else ""
        rows["steps"] = f"{trained.step}{best}"
        if trained.evaluation_loss_before is not None and trained.evaluation_loss_after is not None:
            before, after = trained.evaluation_loss_before, trained.evaluation_loss_after
            rows["loss on the held-out rows"] = f"{before:.4f} before, {after:.4f} after"
    if (told := outcomes.get(Stage.EXPORT)) and (exported := told.export):
        rows["model" if whole else "adapter"] = f"export/, {exported.size_bytes:,} bytes, {exported.digest}"
    rows["time"] = f"{seconds:.0f} s in this run"
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    picture = "\n\n![loss by step](loss.png)" if drawn else ""
    return f"# {job.name}\n\n| | |\n|---|---|\n{table}{picture}\n"


def draw(file: Path, title: str, curve: Curve) -> bool:
    """Draw the losses by step; False without matplotlib, which the trainer's image does not have."""
    try:
        import matplotlib as mpl
        from matplotlib import pyplot as plt
    except ImportError:
        return False
    mpl.use("Agg")
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for points, label, style in ((curve.training, "training", "-"), (curve.evaluation, "held out", "o--")):
        if points:
            axes.plot([step for step, _ in points], [loss for _, loss in points], style, label=label)
    axes.set(title=title, xlabel="step", ylabel="loss, nats")
    axes.legend(frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return True
