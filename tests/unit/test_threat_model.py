"""Each fault of the review has a row, and a row names the tests that show it mended, or says why it is accepted."""

import re
from pathlib import Path

import pytest

from dev.cache import REPOSITORY

PAGES = [REPOSITORY / "docs" / name for name in ("threat-model.md", "reliability.md")]
FAULTS = {*(f"C{n}" for n in range(1, 5)), *(f"H{n}" for n in range(1, 10)), *(f"M{n}" for n in range(1, 18))}
TESTS = list((REPOSITORY / "tests").rglob("test_*.py"))
NAMES = {file.stem for file in TESTS}
NAMES.update(*(re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE) for file in TESTS))


def rows(page: Path) -> list[list[str]]:
    """The rows of each table whose last column names tests."""
    tables = re.findall(r"^\|[^\n]*\| test \|\n\|[-|]+\n((?:\|[^\n]*\n)+)", page.read_text(), re.MULTILINE)
    lines = "".join(tables).splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


ROWS = {f"{page.stem}: {row[0]}": row for page in PAGES for row in rows(page)}


def test_each_fault_has_a_row() -> None:
    assert set(re.findall(r"\b[CHM]\d+\b", " ".join(row[0] for row in ROWS.values()))) >= FAULTS


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_each_row_names_tests_that_exist_or_says_why_it_is_accepted(row: list[str]) -> None:
    assert len(row) == 4
    *_, now, shown = row
    files = re.findall(r"tests/[\w/]+\.py", shown)
    words = re.findall(r"\btest_\w+", shown)
    assert words or files or "golden files" in shown or "Accepted" in now
    assert [file for file in files if not (REPOSITORY / file).exists()] == []
    assert [word for word in words if word not in NAMES] == []
