"""The trainer without a cluster takes and refuses what an API server does: the same tables, asked without one."""

import re
from pathlib import Path
from typing import Any

import pytest

from sluice_api.admission import Problem, filled, problems
from sluice_api.crd import RESOURCES, resource_schema
from sluice_api.finetunejob import FineTuneJob
from sluice_api.schema import RULES, fields_of
from sluice_trainer.manifest import read_documents
from tests.integration.refusals import REFUSED, SMALLEST, SPELLINGS, merged, spelt, written

KINDS = {resource.KIND.kind: resource for resource in RESOURCES}
REMEDIES = {
    rule["message"]
    for resource in RESOURCES
    for _, field in [("", resource_schema(resource)), *fields_of(resource_schema(resource), "")]
    for rule in field.get(RULES, ())
}


def text(problem: Problem) -> str:
    unknown = f'unknown field "{problem.field}"' if problem.unknown else ""
    return f"{problem.field}: {problem.message} {unknown}"


@pytest.mark.parametrize("kind", SMALLEST)
def test_smallest_object_is_taken(kind: str) -> None:
    assert problems(KINDS[kind], SMALLEST[kind]) == []


@pytest.mark.parametrize(("kind", "field", "value", "expected"), REFUSED)
def test_what_an_api_server_refuses_is_refused(kind: str, field: str, value: Any, expected: str) -> None:
    found = problems(KINDS[kind], merged(SMALLEST[kind], written(field, value)))
    *where, said = expected.split(" * ")
    in_rule = any(remedy.startswith(said) for remedy in REMEDIES)
    place = re.split(r"[.\[]", where[0].rstrip(":"))[-1].rstrip("]") if where else field.rpartition(".")[2]
    fitting = [problem for problem in found if place in text(problem) and (not in_rule or said in problem.message)]
    assert fitting, [text(problem) for problem in found]


@pytest.mark.parametrize(("spelling", "is_taken"), SPELLINGS)
def test_a_spelling_is_taken_or_refused(tmp_path: Path, spelling: str, *, is_taken: bool) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(spelt(spelling))
    (body,) = read_documents(file)
    found = problems(FineTuneJob, body)
    assert (found == []) is is_taken, [text(problem) for problem in found]
    if is_taken:
        FineTuneJob.model_validate(filled(FineTuneJob, body))


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        (
            "training: {learningRate: 0.0002}",
            "spec.training.learningRate: write a string in quotes: '0.0002'; write a decimal number as a string, such "
            "as '2e-4' or '0.1'",
        ),
        (
            "dataset: {uri: 'pvc://d/a.jsonl', validationSplit: 0.1}",
            "spec.dataset.validationSplit: write a string in quotes: '0.1'; write a share from 0% to 49%, such as 10%",
        ),
        ("training: {epochs: 0}", "spec.training.epochs: write at least 1"),
        ("training: {maxSteps: '2'}", "spec.training.maxSteps: write an integer"),
        ("method: qlora", "spec.method: write one of LoRA, QLoRA, Full"),
        (
            "dataset: {format: Text}",
            "spec.dataset.uri: write dataset.uri, or dataset.sources for several; one of the two",
        ),
    ],
)
def test_a_refusal_says_what_to_write(tmp_path: Path, spelling: str, message: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(spelt(spelling))
    (body,) = read_documents(file)
    assert [text(problem).strip() for problem in problems(FineTuneJob, body)] == [message]
