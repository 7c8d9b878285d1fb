"""The report on a terminal."""

import re

import pytest

from sluice_api.data_report import DataProblem, DataReport, SampleRow, Severity
from sluice_trainer.data.report.lengths import lengths_of
from sluice_trainer.data.report.terminal import has_colour, preview
from sluice_trainer.data.report.visible import visible
from tests.unit.trainer.report.test_page import evil_report

ROW = SampleRow.of("rows.jsonl, line 3", [("Hi?\n", False), ("Hello\nyou", True), ("\n", False)], 5, 3)
REPORT = DataReport(
    job="job", rows_read=3, rows=2, validation_rows=1, samples=(ROW, ROW), lengths=lengths_of([0, 0, 3], 512),
    problems=(
        DataProblem(
            kind="Twice", severity=Severity.WARNING, message="It is there twice.", count=9, places=("l 1",)
        ),
    ),
)  # fmt: skip


class Out:
    """An output that is a terminal or not."""

    def __init__(self, *, terminal: bool) -> None:
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize(
    ("terminal", "environment", "colour"),
    [
        (True, {}, True),
        (True, {"NO_COLOR": ""}, True),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {}, False),
    ],
)
def test_colour_is_for_terminals_whose_reader_wants_it(
    terminal: bool, environment: dict[str, str], colour: bool
) -> None:
    assert has_colour(Out(terminal=terminal), environment) is colour


def test_preview_without_colour_puts_what_is_learnt_in_brackets() -> None:
    text = preview(REPORT, 1, colour=False)
    assert "  rows.jsonl, line 3, 5 tokens, 3 of them learnt\n  | Hi?\n  | ⟦Hello\n  | you⟧\n" in text
    assert "Warning: It is there twice.\n    l 1; and 8 more" in text
    assert "\x1b" not in text


def test_preview_with_colour_marks_each_line_that_is_learnt() -> None:
    text = preview(REPORT, 2, colour=True)
    assert text.count("\x1b[30;43mHello\x1b[0m\n  | \x1b[30;43myou\x1b[0m") == 2


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_preview_shows_as_many_rows_as_are_asked_for(rows: int) -> None:
    assert preview(REPORT, rows, colour=False).count("| Hi?") == rows


def test_preview_of_hostile_rows_sends_the_terminal_nothing() -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202e"
    report = evil_report().model_copy(
        update={
            "samples": (SampleRow.of(evil, [(evil, True)]),),
            "problems": (DataProblem(kind="k", severity=Severity.ERROR, message=evil, places=(evil,)),),
        }
    )
    text = preview(report, 5, colour=True)
    assert not re.search(r"[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u202e]", text)
    assert {*re.findall(r"\x1b[^m]*m", text)} <= {"\x1b[30;43m", "\x1b[31m", "\x1b[1m", "\x1b[0m"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("a\u200bb", "a[U+200B]b"),
        ("\u202eabc", "[U+202E]abc"),
        ("\x1b[31m", "[U+001B][31m"),
        ("\ufeffa\r\n", "[U+FEFF]a[U+000D]\n"),
        ("tag \U000e0041", "tag [U+E0041]"),
        ("family \U0001f468\u200d\U0001f469\u200d\U0001f467", "family \U0001f468\u200d\U0001f469\u200d\U0001f467"),
        ("\u0915\u094d\u200d\u0937", "\u0915\u094d\u200d\u0937"),
        ("a\u200db", "a[U+200D]b"),
        ("日本語 עברית", "日本語 עברית"),
    ],
)
def test_hidden_characters_are_written_as_their_codes(text: str, expected: str) -> None:
    assert visible(text) == expected
