"""What is wrong with rows is found before the first step, wherever it is among thousands, and nothing else is."""

import re
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from sluice_api.data_report import DataReport, Severity
from sluice_trainer.errors import StageError
from tests.unit.trainer.clean import CONTROLS, Clean
from tests.unit.trainer.defects import DEFECTS
from tests.unit.trainer.jobs import Job
from tests.unit.trainer.planting import Defect


def planted(job: Job, defect: Defect) -> tuple[Job, dict[str, str]]:
    """The job with the defect, and what stands for {at} and {file} in its message."""
    clean, random = defect.clean, Random(defect.kind)
    at, rows = random.randrange(1, len(clean.rows())), list(clean.rows())
    if defect.row:
        rows[at] = defect.row(rows[at])
    if defect.line:
        rows[at] = defect.line(clean.encode([rows[at]]).splitlines()[-1])
    rows = list(defect.rows(rows, at)) if defect.rows else rows
    content = clean.encode(rows)
    name = defect.name or clean.name
    folder = job.volumes / "datasets"
    (folder / "rows.jsonl").unlink()
    (folder / name).write_bytes(defect.whole(content, random) if defect.whole else content)
    if defect.second:
        (folder / f"second{Path(name).suffix}").write_bytes(defect.second(rows, at))
    use(job, defect.template or clean.template)
    if defect.model:
        defect.model(job.volumes / "models" / "tiny")
    dataset = {"uri": f"pvc://datasets/{name}", "validationSplit": "5%", **clean.dataset, **defect.dataset}
    number = clean.first + (at if len(rows) >= len(clean.rows()) else 0)
    where = {"at": f"datasets/{name}, {clean.unit} {number}", "file": f"datasets/{name}"}
    return replace(
        job, spec=(("dataset", dataset), *defect.spec.items()), training=tuple(defect.training.items())
    ), where


def use(job: Job, template: str) -> None:
    path = job.volumes / "models" / "tiny" / "chat_template.jinja"
    path.unlink()
    path.write_text(template)


def report_of(job: Job) -> DataReport:
    return DataReport.model_validate_json((job.work / "prepared" / "report.json").read_bytes())


def found_in(job: Job) -> tuple[Severity, str]:
    """How it ends: with an error, or with a report."""
    try:
        job.prepare()
    except StageError as error:
        return Severity.ERROR, error.message
    problems = report_of(job).problems
    return Severity.WARNING, "\n".join(problem.message for problem in problems)


@pytest.mark.parametrize("defect", DEFECTS, ids=[defect.kind for defect in DEFECTS])
def test_defect_is_found_with_file_row_and_remedy(job: Job, defect: Defect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sluice_trainer.data.collect.processes_for", lambda _: 1)  # others take seconds to start
    job, where = planted(job, defect)
    severity, message = found_in(job)
    pattern = ".*?".join(map(re.escape, defect.says.format(**where).split("…")))
    assert re.match(pattern, message, re.DOTALL), (severity, message, pattern)
    assert severity is defect.severity


@pytest.mark.parametrize("clean", CONTROLS, ids=[clean.name for clean in CONTROLS])
def test_nothing_is_found_in_clean_rows(job: Job, clean: Clean) -> None:
    job, _ = planted(job, Defect("", "", clean=clean, template=clean.template))
    result = job.prepare()
    report = report_of(job)
    assert (report.problems, result.refused_rows, result.rows + result.validation_rows) == ((), 0, len(clean.rows()))
