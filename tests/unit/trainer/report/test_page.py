"""The report as one HTML file: nothing of a row runs in it, calls anyone, or hides anything."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sluice_api.data_report import (
    Conflict,
    Conflicts,
    DataProblem,
    DataReport,
    DropCount,
    Estimate,
    FileReport,
    LanguageShare,
    LikePair,
    MemoryUse,
    RefusedRow,
    SampleRow,
    Severity,
    StepExample,
    StepReport,
)
from sluice_api.data_report import Duplicates as Alike
from sluice_trainer.data.report.lengths import lengths_of
from sluice_trainer.data.report.page import page, write_report

EVIL = (
    "</pre></style><script>alert(1)</script><img src=x onerror=a()>\" onmouseover='alert(3)' {{ 7 * 7 }} \u202egnp.exe"
)
VOID = {"meta", "br", "img", "link", "input"}


def evil_report() -> DataReport:
    """A report whose every text is an attack."""
    row = SampleRow.of(EVIL, [(EVIL, False), (EVIL, True)], 9, 4)
    example = StepExample(place=EVIL, why=EVIL, before=EVIL, after=EVIL)
    dropped = DropCount(why=EVIL, rows=1)
    return DataReport(
        job=EVIL, model=EVIL, method=EVIL,
        rows_read=9, rows_refused=1, rows=7, validation_rows=1, tokens=90, loss_tokens=30,
        files=(FileReport(name=EVIL, file_format=EVIL, row_format=EVIL, rows=9, unread_fields=(EVIL,)),),
        refused=(RefusedRow(place=EVIL, problem=EVIL),),
        steps=(StepReport(name=EVIL, rows_in=8, rows_out=8, dropped=(dropped,), examples=(example,)),),
        lengths=lengths_of([0, 3, 5], 2),
        duplicates=Alike(exact=1, examples=(LikePair(first=EVIL, second=EVIL, text=EVIL),)),
        conflicts=Conflicts(count=1, examples=(Conflict(question=EVIL, answers=(EVIL, EVIL), places=(EVIL, EVIL)),)),
        languages=(LanguageShare(code=EVIL, rows=8),), chat_template=EVIL, rendered=row, samples=(row,),
        problems=(DataProblem(kind=EVIL, severity=Severity.ERROR, message=EVIL, count=9, places=(EVIL,)),),
        estimate=Estimate(
            gpus=1, gpu_product=EVIL, gpu_memory_bytes=2 << 30, least_gpu_memory_bytes=1 << 30, basis=EVIL,
            parts=(MemoryUse(what=EVIL, size_bytes=1 << 30),),
        ),
    )  # fmt: skip


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.marked: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "mark":
            self.marked.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "line", "only SVG has such elements"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "mark" in self.open:
            self.marked[-1] += data


def test_page_of_hostile_rows_has_no_script_no_handler_and_no_request() -> None:
    text = page(evil_report())
    seen = Page(text)
    assert not seen.open, "every element is closed"
    assert not {"script", "img", "iframe", "link", "object", "form", "a"} & {*seen.tags}
    assert not [name for name, _ in seen.attributes if name.startswith("on") or name in ("src", "href", "action")]
    assert "default-src 'none'" in text
    assert not {"url(", "@import"} & {*re.findall(r"url\(|@import", text)}
    assert "{{ 7 * 7 }}" in text, "a row is no template"
    assert "\u202e" not in text
    assert "[U+202E]gnp.exe" in text


def test_page_marks_exactly_what_is_learnt() -> None:
    row = SampleRow.of("rows.jsonl, line 1", [("asked <b>", False), ("answered &amp; <i>", True), ("\n", False)])
    report = DataReport(job="job", samples=(row,))
    assert Page(page(report)).marked == ["like this", "answered &amp; <i>"], "the first is the legend's"
    style = re.search(r"<style>(.*?)</style>", page(report), re.DOTALL)
    assert style is not None
    assert {"⟦", "border-bottom"} <= {*re.findall("⟦|border-bottom", style[1])}, "by more than colour"


def test_page_of_an_empty_report_is_whole() -> None:
    seen = Page(page(DataReport(job="job")))
    assert not seen.open
    assert seen.tags.count("h1") == 1
    assert seen.tags.count("caption") == seen.tags.count("table")


def test_page_has_a_heading_and_a_caption_everywhere() -> None:
    seen = Page(page(evil_report()))
    assert seen.tags.count("caption") == seen.tags.count("table") >= 7
    assert {"lang", "viewport", "color-scheme"} <= {*dict(seen.attributes), *(value for _, value in seen.attributes)}
    ids = {value for name, value in seen.attributes if name == "id"}
    assert {value for name, value in seen.attributes if name == "aria-labelledby"} <= ids


def test_report_is_written_as_two_files_that_say_the_same(tmp_path: Path) -> None:
    report = evil_report()
    write_report(tmp_path, report)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.html", "report.json"]
    assert DataReport.model_validate_json((tmp_path / "report.json").read_bytes()) == report
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page(report), "the same bytes each time"


@pytest.mark.parametrize("rows", [0, 1, 10_000_000])
def test_page_says_how_many_rows_are_left(rows: int) -> None:
    text = page(DataReport(job="job", rows_read=10_000_000, rows=rows))
    assert f"<dd>{rows:,}" in text
