"""The examples of the docs are true."""

import json
import re
from pathlib import Path

import pytest
import yaml

from sluice_api.dataset import DatasetFormat
from sluice_trainer.data.formats import format_of, parse
from sluice_trainer.data.row import Row, Tokens
from tests.unit.trainer.steps.rows import run

PAGES = (Path(__file__).parents[4] / "docs").glob("data*.md")
EXAMPLES = [
    example
    for page in PAGES
    for example in re.findall(
        r"^```yaml\n(- .*?)^```\n\n^```jsonl in\n(.*?)^```\n\n^```jsonl out\n(.*?)^```\n",
        page.read_text(),
        re.DOTALL | re.MULTILINE,
    )
]


def row(line: str) -> Row | str:
    """A row, or why one is dropped."""
    if not line.startswith("{"):
        return line
    fields = json.loads(line)
    found = parse(fields, format_of(fields, DatasetFormat.AUTO, "docs"), "docs")
    assert not isinstance(found, Tokens)
    return found


@pytest.mark.parametrize(("steps", "before", "after"), EXAMPLES, ids=[steps.split(":")[0] for steps, *_ in EXAMPLES])
def test_example_of_the_docs(steps: str, before: str, after: str) -> None:
    rows = [made for line in before.splitlines() if not isinstance(made := row(line), str)]
    assert run(yaml.safe_load(steps), rows) == [row(line) for line in after.splitlines()]


def test_each_step_has_an_example() -> None:
    steps = {next(iter(yaml.safe_load(steps)[0])) for steps, *_ in EXAMPLES}
    assert steps == {"clean", "filter", "deduplicate", "redact", "chunk"}
