"""The data report: whatever rows say, it is made, it is small, and it is read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_api.data_report import (
    MAX_PROBLEM_CHARACTERS,
    MAX_ROW_CHARACTERS,
    MAX_TEMPLATE_CHARACTERS,
    Conflict,
    Conflicts,
    DataProblem,
    DataReport,
    DropCount,
    Duplicates,
    Estimate,
    FileReport,
    LikePair,
    Overlong,
    RefusedRow,
    SampleRow,
    Severity,
    StepExample,
    StepReport,
    cut,
)
from sluice_api.stages import PrepareResult

WORD = "\U0001f600" * 1_000_000
"""A megabyte and more: each character has four bytes."""


def test_report_of_huge_texts_and_lists_is_cut_to_a_few_megabytes() -> None:
    row = SampleRow.of(WORD, [(WORD, True), (WORD, False)] * 300)
    example = StepExample(place=WORD, why=WORD, before=WORD, after=WORD)
    step = StepReport(
        name=WORD, rows_in=2, rows_out=1, dropped=(DropCount(why=WORD, rows=1),) * 99, examples=(example,) * 99
    )
    report = DataReport(
        job=WORD, model=WORD, method=WORD,
        files=(FileReport(name=WORD, unread_fields=(WORD,) * 999),) * 999,
        refused=(RefusedRow(place=WORD, problem=WORD),) * 99,
        steps=(step,) * 99,
        duplicates=Duplicates(examples=(LikePair(first=WORD, second=WORD, text=WORD),) * 9),
        conflicts=Conflicts(examples=(Conflict(question=WORD, answers=(WORD, WORD), places=(WORD, WORD)),) * 9),
        chat_template=WORD,
        samples=(row,) * 99,
        problems=(DataProblem(kind=WORD, severity=Severity.ERROR, message=WORD, places=(WORD,) * 99),) * 999,
    )  # fmt: skip
    text = report.to_json()
    assert len(text.encode()) < 6_000_000
    assert DataReport.model_validate_json(text) == report
    assert len(report.chat_template) == MAX_TEMPLATE_CHARACTERS
    assert sum(len(part.text) for part in report.samples[0].parts) == MAX_ROW_CHARACTERS


@given(st.lists(st.tuples(st.text(st.characters(exclude_categories=())), st.booleans()), max_size=20))
def test_sample_row_is_made_of_any_text(parts: list[tuple[str, bool]]) -> None:
    row = SampleRow.of("rows.jsonl, line 1", parts)
    assert [part.learnt for part in row.parts] == [learnt for _, learnt in parts]
    assert SampleRow.model_validate_json(row.to_json()) == row


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [("short", 5, "short"), ("longer", 5, "long…"), ("", 5, ""), ("a\ud83d", 5, "a?")],
)
def test_text_is_cut_with_an_ellipsis(text: str, most: int, expected: str) -> None:
    assert cut(text, most) == expected


def test_first_problems_are_three_and_errors_come_first() -> None:
    def problem(severity: Severity, message: str) -> DataProblem:
        return DataProblem(kind="Kind", severity=severity, message=message)

    report = DataReport(
        job="job",
        problems=(
            problem(Severity.WARNING, "first"),
            problem(Severity.WARNING, "second"),
            problem(Severity.ERROR, "e" * 999),
            problem(Severity.WARNING, "third"),
        ),
    )
    worst, *others = report.first_problems
    assert others == ["first", "second"]
    assert worst == "e" * (MAX_PROBLEM_CHARACTERS - 1) + "…"


def test_result_repeats_what_the_report_says() -> None:
    estimate = Estimate(gpus=1, gpu_memory_bytes=7, least_gpu_memory_bytes=5, seconds=60, price="0.10")
    reasons = tuple(DropCount(why=f"language {number}", rows=1) for number in range(20))
    step = StepReport(name="filter", rows_in=30, rows_out=10, dropped_rows=20, dropped=reasons)
    report = DataReport(
        job="job",
        steps=(step,),
        overlong=Overlong(truncated=9, dropped=4),
        duplicates=Duplicates(exact=1, across_split=2, near_across_split=3),
        conflicts=Conflicts(count=8),
        problems=(DataProblem(kind="Kind", severity=Severity.WARNING, message="Look."),),
        estimate=estimate,
    )
    counts = {"rows": 4, "validation_rows": 0, "refused_rows": 0, "tokens": 9, "loss_tokens": 3, "steps": 1}
    result = PrepareResult(**counts, **report.of_result)
    assert (result.dropped_rows, result.duplicate_rows, result.conflicting_questions) == (24, 6, 8)
    assert (result.estimated_gpu_memory_bytes, result.estimated_seconds, result.estimated_price) == (7, 60, "0.10")
    assert result.problems == ("Look.",)
    assert PrepareResult(**counts, **DataReport(job="job").of_result) == PrepareResult(**counts)
