"""The report on a terminal: what `python -m sluice_trainer prepare job.yaml --preview 5` shows."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from sluice_api.data_report import DataReport, RowPart, SampleRow, Severity
from sluice_trainer.data.report.figures import estimate_rows, number, passed, tiles
from sluice_trainer.data.report.visible import visible

_LEARNT, _ERROR, _WARNING, _BOLD, _END = "\x1b[30;43m", "\x1b[31m", "\x1b[33m", "\x1b[1m", "\x1b[0m"
_OPENS, _CLOSES = "⟦", "⟧"


class Terminal(Protocol):
    """What can say whether a person reads it."""

    def isatty(self) -> bool:
        """Whether it is a terminal."""


def has_colour(out: Terminal, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the output shows colours, and its reader wants them (https://no-color.org)."""
    return out.isatty() and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


def preview(report: DataReport, rows: int, *, colour: bool) -> str:
    """The report as text: what was done, what is wrong, some rows, and what training will take.

    Args:
        report: What Prepare found.
        rows: How many rows to show at most.
        colour: Whether what is learnt is marked by colour, and by brackets otherwise.
    """
    parts = [*_figures(report), *_steps(report), *_problems(report, colour=colour)]
    shown = report.samples[:rows]
    if shown:
        how = f"{_LEARNT}like this{_END}" if colour else f"between {_OPENS} and {_CLOSES}"
        parts.append(_title(f"Rows as the model reads them; what it learns is {how}", colour=colour))
        parts += [_row(row, colour=colour) for row in shown]
    if report.estimate is not None:
        parts.append(_title("What training will take", colour=colour))
        parts += [f"  {name:<28} {visible(value)}" for name, value in estimate_rows(report.estimate)]
        if report.estimate.basis:
            parts.append(f"  {visible(report.estimate.basis)}")
    return "\n".join(parts)


def _title(text: str, *, colour: bool) -> str:
    return f"\n{_BOLD}{text}{_END}" if colour else f"\n{text}"


def _figures(report: DataReport) -> Iterator[str]:
    for name, value, note in tiles(report)[:4]:
        yield f"  {name:<28} {value}{f' ({note})' if note else ''}"
    lengths = report.lengths
    if unread := sorted({name for file in report.files for name in file.unread_fields}):
        yield visible(f"  {'Fields that nothing reads':<28} {', '.join(unread)}")
    most = f"half at most {number(lengths.median)}, 9 of 10 {number(lengths.p90)}, 99 of 100 {number(lengths.p99)}"
    yield f"  {'Lengths':<28} {most}"


def _steps(report: DataReport) -> Iterator[str]:
    """The steps as a table."""
    rows = [("Step", "in", "out", "changed", "dropped")]
    for step in passed(report):
        changed = number(step.changed) if step.changed else ""
        rows.append((step.name, number(step.rows_in), number(step.rows_out), changed, "; ".join(step.dropped)))
    yield ""
    yield from _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows in columns as wide as they need: the first and the last to the left, those between to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for first, *middle, last in rows:
        numbers = "  ".join(text.rjust(width) for text, width in zip(middle, widths[1:-1], strict=True))
        yield visible(f"  {first.ljust(widths[0])}  {numbers}  {last}".rstrip())


def _problems(report: DataReport, *, colour: bool) -> Iterator[str]:
    if not report.problems:
        yield "\n  No problem was found."
        return
    yield ""
    for problem in sorted(report.problems, key=lambda problem: problem.severity is not Severity.ERROR):
        paint = (_ERROR if problem.severity is Severity.ERROR else _WARNING) if colour else ""
        yield f"  {paint}{problem.severity}{_END if colour else ''}: {visible(problem.message)}"
        if problem.places:
            more = problem.count - len(problem.places)
            yield visible(f"    {'; '.join(problem.places)}{f'; and {number(more)} more' if more > 0 else ''}")


def _row(row: SampleRow, *, colour: bool) -> str:
    tokens = f", {number(row.tokens)} tokens, {number(row.loss_tokens)} of them learnt" if row.tokens else ""
    rejected = f"  rejected:\n{_lines(row.rejected, colour=colour)}\n" if row.rejected else ""
    return f"  {visible(row.place)}{tokens}\n{_lines(row.parts, colour=colour)}\n{rejected}"


def _lines(parts: Sequence[RowPart], *, colour: bool) -> str:
    opens, closes = (_LEARNT, _END) if colour else (_OPENS, _CLOSES)
    texts = ((visible(part.text), part.learnt) for part in parts)
    text = "".join(_marked(text, opens, closes) if learnt else text for text, learnt in texts)
    return "\n".join(f"  | {line}" for line in text.rstrip("\n").split("\n"))


def _marked(text: str, opens: str, closes: str) -> str:
    """The text with a mark around it. A colour begins anew on each line, or it would run over the margin."""
    if opens == _OPENS:
        return f"{opens}{text}{closes}"
    return "\n".join(f"{opens}{line}{closes}" if line else line for line in text.split("\n"))
