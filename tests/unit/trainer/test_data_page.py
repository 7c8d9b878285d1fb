"""docs/data.md: its examples are put through Prepare, and what follows them is what comes out."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from sluice_api.data_report import DataReport, RowPart, SampleRow
from sluice_api.dataset import FileFormat
from sluice_api.sources import KEYS_OF
from sluice_trainer.data.collect import too_slow
from sluice_trainer.data.read.read import read
from sluice_trainer.data.read.row_file import RowFile
from tests.unit.pages import commands
from tests.unit.trainer.clean import SHOWS_TOOLS
from tests.unit.trainer.defects import BESIDE, DEFECTS, FILES, MODELS, ROWS, TEXTS
from tests.unit.trainer.jobs import REPOSITORY, Job
from tests.unit.trainer.planting import Defect

PAGE = REPOSITORY / "docs" / "data.md"
DEFECTS_PAGE = REPOSITORY / "docs" / "defects.md"
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LEARNT = "text learnt"


def as_reviewed(old: str, new: str, file: Path = PAGE) -> None:
    """Compare a piece of a page, or rewrite it (make golden)."""
    if os.environ.get("SLUICE_GOLDEN") == "rewrite":
        page = file.read_text()
        assert page.count(old) == 1, "such a piece is there more than once"
        file.write_text(page.replace(old, new))
    else:
        assert old == new


@dataclass
class Example:
    """Files, what the job says of them, and what the page says that comes out."""

    files: dict[str, str] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    shown: str = ""


def examples() -> Iterator[Example]:
    """In the order of the page."""
    found = Example()
    for info, body in BLOCK.findall(PAGE.read_text()):
        if re.fullmatch(r"\w+ \w+\.\w+", info):
            found.files[info.split()[1]] = body
        elif info == "yaml" and body.startswith("dataset:"):
            found.dataset = yaml.safe_load(body)["dataset"]
        elif info == LEARNT:
            found.shown = body
            yield found
            found = Example()
        elif info == "python":  # the files of all kinds end there, and have a test of their own
            found = Example()


EXAMPLES = list(examples())


@pytest.mark.parametrize("example", EXAMPLES, ids=[", ".join(example.files) for example in EXAMPLES])
def test_rows_of_the_page_are_learnt_as_reviewed(job: Job, example: Example) -> None:
    for name, content in example.files.items():
        (job.volumes / "datasets" / name).write_text(content)
    template = job.volumes / "models" / "tiny" / "chat_template.jinja"
    if "tools.jsonl" in example.files:
        template.unlink()
        template.write_text(SHOWS_TOOLS)
    uri = {} if "sources" in example.dataset else {"uri": f"pvc://datasets/{next(iter(example.files))}"}
    dataset = {**uri, "validationSplit": "0%", **example.dataset}
    job = replace(job, spec=(("dataset", dataset),))
    result = job.prepare()
    report = DataReport.model_validate_json((job.work / "prepared" / "report.json").read_bytes())
    lines = [line for sample in report.samples for line in shown(sample)]
    if result.rows > len(report.samples):
        lines.append(f"{result.rows} rows in an epoch")
    if result.validation_rows:
        lines.append(f"{result.validation_rows} row held out")
    as_reviewed(f"{LEARNT}\n{example.shown}```", "\n".join([LEARNT, *lines, "```"]))


def shown(row: SampleRow) -> Iterator[str]:
    yield row.place
    yield from lines_of(row.parts)
    if row.rejected:
        yield "rejected:"
        yield from lines_of(row.rejected)


def lines_of(parts: Sequence[RowPart]) -> Iterator[str]:
    text = "".join(f"⟦{part.text}⟧" if part.learnt else part.text for part in parts)
    return (f"| {line}".rstrip() for line in text.rstrip("\n").split("\n"))


def test_files_of_every_kind_have_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = PAGE.read_text().split("## What files may look like")[1].split("\n## ")[0]
    monkeypatch.chdir(tmp_path)
    for info, body in BLOCK.findall(section):
        if info == "python":
            exec(compile(body, str(PAGE), "exec"), {})
        else:
            Path(info.split()[1]).write_text(body)
    kinds: dict[FileFormat, list[list[Any]]] = {}
    for file in sorted(tmp_path.iterdir()):
        with read(RowFile(file, file.name), FileFormat.AUTO) as reading:
            rows = [fields for batch in reading.batches for _, fields in batch.decoded()]
            kinds.setdefault(reading.file_format, []).append(rows)
    assert {*kinds} == {*FileFormat} - {FileFormat.AUTO}
    expected = [
        {"prompt": "What is 2 + 2?", "completion": "Four."},
        {"prompt": 'And "twice" that?', "completion": "Eight,\nof course."},
    ]
    assert all(rows == expected for found in kinds.values() for rows in found)


def table() -> str:
    """The defects as a table of Markdown."""
    parts = {
        "Files": FILES, "Characters, JSON and CSV": TEXTS, "Rows": ROWS, "Rows with the model": MODELS,
        "Rows with each other, and with the job": BESIDE,
    }  # fmt: skip
    return "\n".join(line for title, defects in parts.items() for line in _part(title, defects))


def _part(title: str, defects: tuple[Defect, ...]) -> Iterator[str]:
    yield from ("", f"| {title} | | What is said |", "| --- | --- | --- |")
    for defect in defects:
        name = f"datasets/{defect.name or defect.clean.name}"
        says = defect.says.format(at=f"{name}, {defect.clean.unit} 817", file=name).removeprefix("…\n")
        yield f"| {defect.kind} | {defect.severity} | `{says.replace('|', chr(92) + '|')}` |"


def test_table_of_defects_is_as_reviewed() -> None:
    begin, end = "<!-- defects -->", "<!-- end -->"
    old = DEFECTS_PAGE.read_text().split(begin)[1].split(end)[0]
    as_reviewed(f"{begin}{old}{end}", f"{begin}\n{table()}\n\n{end}", DEFECTS_PAGE)


def test_there_are_many_kinds_of_defects_and_each_has_its_name() -> None:
    assert len({defect.kind for defect in DEFECTS}) == len(DEFECTS) > 100


def test_warning_of_too_little_time_is_as_reviewed() -> None:
    info = "text too slow"
    old = next(body for found, body in BLOCK.findall(PAGE.read_text()) if found == info)
    as_reviewed(f"{info}\n{old}```", f"{info}\n{too_slow('s3://corpus/part-*.jsonl', 41_000, 3600)}\n```")


def test_secrets_of_the_page_have_keys_that_are_read() -> None:
    known = {key for keys in KEYS_OF.values() for key in keys}
    found = re.findall(r"--from-(?:literal|file)=([A-Z]\w+)=", PAGE.read_text())
    assert len(found) > 9
    assert {*found} <= known
    named = re.findall(r"`([A-Z]+_[A-Z_]+)`", PAGE.read_text())
    assert {*named} - {"NO_COLOR"} <= known
    assert commands(PAGE) == [], "what is to be typed is in blocks of sh, which no test runs"
