"""The report as files: report.json, and report.html, which is one file without scripts that opens by itself.

Rows are anybody's text. Everything is escaped, hidden characters are written as their codes, and the page forbids
itself scripts and requests, so that nothing of a row can run or call anyone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from sluice_api.data_report import REPORT_HTML, REPORT_JSON, DataReport, RowPart, Severity
from sluice_trainer.data.report.figures import estimate_rows, number, passed, size, tiles
from sluice_trainer.data.report.histogram import Histogram
from sluice_trainer.data.report.visible import visible

_HERE = Path(__file__).parent


def write_report(folder: Path, report: DataReport) -> None:
    """Write report.json and report.html into a folder."""
    (folder / REPORT_JSON).write_text(f"{report.to_json()}\n", encoding="utf-8")
    (folder / REPORT_HTML).write_text(page(report), encoding="utf-8")


def page(report: DataReport) -> str:
    """The report as an HTML page."""
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    environment.filters |= {"number": number, "size": size}
    return environment.get_template("page.html").render(
        report=report,
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
        figures=tiles(report),
        passed=passed(report),
        problems=sorted(report.problems, key=lambda problem: problem.severity is not Severity.ERROR),
        estimate=estimate_rows(report.estimate) if report.estimate else (),
        histogram=Histogram.of(report.lengths),
        bar=_bar,
        parts=_parts,
    )


def _shown(value: Any) -> Any:
    """What stands for a value in the page: texts with their hidden characters visible; markup as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _parts(parts: Sequence[RowPart]) -> Markup:
    """A row's parts; those that are learnt are marked."""
    marked = (Markup("<mark>{}</mark>") if part.learnt else Markup("{}") for part in parts)
    return Markup("").join(mark.format(visible(part.text)) for mark, part in zip(marked, parts, strict=True))


def _bar(part: int, whole: int) -> Markup:
    """A bar as long as the part of the whole, with its share for who can't see it."""
    share = 100 * part / whole if whole else 0.0
    percent = f"{share:.0f}" if share >= 1 or share == 0 else f"{share:.1f}"
    return Markup('<span class="bar" role="img" aria-label="{} %"><i style="width:{:.2f}%"></i></span>').format(
        percent, min(100.0, share)
    )
