"""What a report counts, of rows and files of which only the first are shown."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sluice_api.data_report import DataReport
from sluice_api.stages import PrepareResult
from sluice_trainer.data.report.terminal import preview
from sluice_trainer.errors import StageError
from tests.unit.trainer.jobs import Job, chat, write_rows

TEXTS = [{"text": f"Row {number} says that it is number {number}."} for number in range(12)]
REFUSED = {"text": "<|im_end|>"}
"""It has no token to learn, which shows when it is tokenised."""


def prepared(job: Job, **dataset: Any) -> tuple[PrepareResult, DataReport]:
    dataset = {"uri": "pvc://datasets/*.jsonl", "validationSplit": "0%", **dataset}
    job = replace(job, spec=(*job.spec, ("dataset", dataset)))
    result = job.prepare()
    return result, DataReport.model_validate_json((job.work / "prepared" / "report.json").read_bytes())


def kinds(report: DataReport) -> dict[str, int]:
    """How many rows, or files, have each problem."""
    return {problem.kind: problem.count for problem in report.problems}


def test_rows_dropped_for_more_reasons_than_are_shown_are_all_counted(job: Job) -> None:
    words = [f"word{number}" for number in range(20)]
    write_rows(job.volumes / job.dataset, [*TEXTS, *({"text": f"This has {word} in it."} for word in words)])
    result, report = prepared(job, steps=[{"filter": {"words": words}}])
    (step,) = report.steps
    assert (result.dropped_rows, step.dropped_rows, len(step.dropped)) == (20, 20, 16)
    assert "; 4: other reasons" in preview(report, 0, colour=False)
    assert kinds(report)["MostRowsDropped"] == 20


def test_empty_files_are_found_behind_those_that_are_shown(job: Job) -> None:
    for number in range(70):
        write_rows(job.volumes / "datasets" / f"{number:02}.jsonl", TEXTS[:1] if number < 66 else [])
    (job.volumes / job.dataset).unlink()
    _, report = prepared(job)
    (message,) = (problem.message for problem in report.problems if problem.kind == "EmptyFiles")
    assert message.startswith("4 of 70 files have no rows, such as datasets/66.jsonl.")


@pytest.mark.parametrize(
    ("steps", "table"),
    [
        ([], ["read 15 12 3: can't be trained on"]),
        ([{"filter": {"maxCharacters": 99}}], [
            "read 15 14 1: can't be trained on", "filter 14 13 1: too long", "tokens 13 12 1: can't be trained on",
        ]),
    ],
)  # fmt: skip
def test_row_is_taken_off_where_it_is_refused(job: Job, steps: list[Any], table: list[str]) -> None:
    long = {"text": "<|im_end|>"} if not steps else {"text": "long " * 40}
    write_rows(job.volumes / job.dataset, [*TEXTS, "nonsense", REFUSED, long])
    _, report = prepared(job, steps=steps, onBadRow="Skip")
    lines = [" ".join(line.split()) for line in preview(report, 0, colour=False).splitlines()]
    assert [line for line in lines if line.startswith(("read", "filter", "tokens"))] == table


SQUAD = {"question": "Who won?", "context": "Red won.", "answer": "Red.", "id": "5"}


@pytest.mark.parametrize(
    ("row", "dataset", "said"),
    [
        (SQUAD, {}, 'datasets/rows.jsonl has "context", which nothing reads: the model learns to answer without. Set '
                    "dataset.fields: {instruction: ..., input: context, output: ...}, or leave it out of the rows."),
        (SQUAD, {"fields": {"instruction": "question", "input": "context", "output": "answer"}}, ""),
        ({**chat("Who won?", "Red."), "passage": "Red won."}, {}, 'has "passage", which nothing reads: the model '
         "learns to answer without. Write them into the text that is asked, or leave it out of the rows."),
        ({**chat("Who won?", "Red."), "category": "sport"}, {}, ""),
    ],
)  # fmt: skip
def test_part_of_a_question_that_nothing_reads_is_a_problem(
    job: Job, row: dict[str, Any], dataset: dict[str, Any], said: str
) -> None:
    write_rows(job.volumes / job.dataset, [row] * 12)
    _, report = prepared(job, **dataset, uri=f"pvc://{job.dataset}")
    messages = [problem.message for problem in report.problems if problem.kind == "UnreadFields"]
    assert (len(messages), said in "".join(messages)) == (bool(said), True), messages
    unread = [name for name in ("context", "passage", "category", "id") if name in row and name not in str(dataset)]
    assert f"Fields that nothing reads    {', '.join(sorted(unread))}" in preview(report, 0, colour=False)


def test_rejected_answer_is_not_shown_as_learnt(job: Job) -> None:
    write_rows(job.volumes / job.dataset, [{"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}] * 2)
    _, report = prepared(job, uri=f"pvc://{job.dataset}")
    for sample in report.samples:
        assert "".join(part.text for part in sample.parts if part.learnt) == "Hello.<|im_end|>"
        assert [(part.text, part.learnt) for part in sample.rejected] == [("No.<|im_end|>", False)]
    assert "\n  rejected:\n  | No.<|im_end|>\n" in preview(report, 1, colour=False)
    assert "Rejected, which it learns not to write:" in (job.work / "prepared" / "report.html").read_text()


@pytest.mark.parametrize(
    "first", [{"filter": {"words": ["sluice"]}}, {"deduplicate": {}}, {"clean": {"whitespace": "Collapse"}}]
)
@pytest.mark.parametrize("padding", ["", "padding " * 30, "padding " * 300])
def test_nothing_shows_what_a_redact_takes_out(job: Job, first: dict[str, Any], padding: str) -> None:
    """Nor what steps before it have changed or dropped, nor the beginning of a key that is cut where it is shown."""
    secrets = ["jane@example.org", "hf_abcdefghijklmnopqrstuvwxyzABCDEF", "4111 1111 1111 1111"]
    key = "-----BEGIN PRIVATE KEY-----\n" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo=\n" * 40 + "-----END PRIVATE KEY-----"
    text = f"{padding}Ask {secrets[0]}  or {secrets[1]}\r\n about {secrets[2]} and {key}."
    write_rows(job.volumes / job.dataset, [*TEXTS, *({"text": f"{text} sluice"},) * 2, {"text": f"{text} {padding}"}])
    _, report = prepared(job, steps=[first, {"redact": {}}], uri=f"pvc://{job.dataset}")
    said = [preview(report, 5, colour=False), *(path.read_text() for path in (job.work / "prepared").glob("report.*"))]
    assert len(said) == 3
    assert not [secret for secret in [*secrets, "QUJDREVG"] for each in said if secret in each]
    assert padding or "[EMAIL]" in said[1]


def test_duplicate_is_shown_with_its_text(job: Job) -> None:
    write_rows(job.volumes / job.dataset, [*TEXTS, TEXTS[3]])
    _, report = prepared(job, steps=[{"deduplicate": {}}])
    ((example,),) = (step.examples for step in report.steps)
    assert (example.place, example.why, example.before) == (
        "datasets/rows.jsonl, line 13", "duplicate", "Row 3 says that it is number 3."
    )  # fmt: skip


def test_names_of_fields_that_nothing_reads_are_bounded(job: Job) -> None:
    rows = [{**TEXTS[0], "x" * 10_000: 1, **{f"field-{row}-{n}": 1 for n in range(40)}} for row in range(100)]
    write_rows(job.volumes / job.dataset, rows)
    _, report = prepared(job)
    assert [len(file.unread_fields) for file in report.files] == [32]


def test_file_whose_name_is_no_utf_8_is_read(job: Job) -> None:
    """As Latin-1 wrote it. The name is shown with the byte's number."""
    (job.volumes / job.dataset).unlink()
    write_rows(job.volumes / "datasets" / os.fsdecode(b"caf\xe9.jsonl"), TEXTS)
    _, report = prepared(job)
    assert [file.name for file in report.files] == [r"datasets/caf\xe9.jsonl"]


def test_source_without_rows_is_of_no_format(job: Job) -> None:
    """It can't be said to be without preferences."""
    pairs = [{"prompt": f"Say {n}.", "chosen": f"It is {n}.", "rejected": "No."} for n in range(12)]
    rows: list[Any]
    for name, rows in (("a", ["", ""]), ("b", pairs)):
        write_rows(job.volumes / "datasets" / f"{name}.jsonl", rows)
    result, _ = prepared(job, uri=None, sources=[{"uri": f"pvc://datasets/{name}.jsonl"} for name in "ab"])
    assert result.rows == 12


def test_pair_is_as_long_as_its_longer_side(job: Job) -> None:
    """training.maxSequenceLength is for each side."""
    pairs = [{"prompt": "Say it.", "chosen": "Yes. " * 9, "rejected": f"No {n}."} for n in range(12)]
    write_rows(job.volumes / job.dataset, pairs)
    _, report = prepared(job)
    offsets, splits = (np.load(job.work / "prepared" / f"{name}.npy") for name in ("offsets", "splits"))
    assert report.lengths.longest == splits.max() > (np.diff(offsets) - splits).max()


def test_rows_that_a_weight_leaves_out_contradict_none(job: Job, tmp_path: Path) -> None:
    write_rows(job.volumes / "datasets" / "a.jsonl", [chat(f"What is {n}?", f"It is {n}.") for n in range(12)])
    write_rows(job.volumes / "datasets" / "b.jsonl", [chat(f"What is {n}?", f"It is not {n}.") for n in range(12)])
    for weight, conflicts in (("0", 0), ("1", 12)):
        sources = [{"uri": "pvc://datasets/a.jsonl"}, {"uri": "pvc://datasets/b.jsonl", "weight": weight}]
        _, report = prepared(replace(job, name=f"job{weight}"), uri=None, sources=sources)
        assert report.conflicts.count == conflicts


def test_words_of_a_file_decide_what_is_left_also_after_an_edit(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    """Their address is the same: their content is part of what says whether prepared rows still are the right ones."""
    words = job.volumes / "lists" / "words.txt"
    words.parent.mkdir()
    write_rows(job.volumes / job.dataset, [*TEXTS, {"text": "This has one in it."}, {"text": "This has two in it."}])
    steps = [{"filter": {"wordsFrom": "pvc://lists/words.txt"}}]
    for text, rows, says in (("one\n", 13, False), ("one\n", 13, False), ("one\ntwo\n", 12, True)):
        words.write_text(text)
        result, _ = prepared(job, steps=steps)
        assert (result.rows, result.dropped_rows) == (rows, 14 - rows)
        assert ("a file of words that a filter names changed since the last run" in capsys.readouterr().out) is says


@pytest.mark.parametrize(
    ("rows", "left"),
    [
        ([""], 0),
        (["one two three"], 1),
        (["one two three", "one two three four"], 2),
        (["a b c d e", "a b c d e!", "a b c d f"], 2),
        ([" ".join(map(str, range(60))), " ".join(map(str, range(61)))], 1),
    ],
)
def test_near_duplicates_of_few_and_short_rows(job: Job, rows: list[str], left: int) -> None:
    """Rows of fewer than five words have no near duplicates."""
    write_rows(job.volumes / job.dataset, [{"text": text} for text in rows])
    if not left:
        with pytest.raises(StageError, match='"text" is empty'):
            prepared(job, steps=[{"deduplicate": {"near": "0.8"}}], onBadRow="Skip")
        return
    assert prepared(job, steps=[{"deduplicate": {"near": "0.8"}}])[0].rows == left


def test_rows_of_one_text_are_on_one_side_of_the_split(job: Job) -> None:
    text = "".join(f"Paragraph {number} of a long text.\n\n" for number in range(20))
    write_rows(job.volumes / job.dataset, [{"text": f"{name}. {text}"} for name in "abcdef"])
    prepared(job, steps=[{"chunk": {"tokens": 32}}], validationSplit="30%")
    lines = np.load(job.work / "prepared" / "lines.npy")
    training, validation = (np.load(job.work / "prepared" / f"{name}.npy") for name in ("training", "validation"))
    assert {*lines[training]} & {*lines[validation]} == set()
    assert len(validation) > len({*lines[validation]}) > 0
