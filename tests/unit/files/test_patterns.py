"""Which names an address with wildcards means."""

import pytest

from sluice_files.patterns import matching, split_pattern

NAMES = (
    "rows.jsonl", "rows.jsonl.gz", "b.jsonl", "part-1.jsonl", "part-10.jsonl", "part-2.jsonl",
    "en/rows.jsonl", "en/deep/er/rows.jsonl", "_SUCCESS", "._rows.jsonl", ".ipynb_checkpoints/rows.jsonl",
    "en/_temporary/0/rows.jsonl", "a+b.jsonl", "aab.jsonl",
)  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "means"),
    [
        ("rows.jsonl", ["rows.jsonl"]),
        ("*.jsonl.gz", ["rows.jsonl.gz"]),
        ("part-?.jsonl", ["part-1.jsonl", "part-2.jsonl"]),
        ("part-*.jsonl", ["part-1.jsonl", "part-10.jsonl", "part-2.jsonl"]),
        ("*/rows.jsonl", ["en/rows.jsonl"]),
        ("**/rows.jsonl", ["en/deep/er/rows.jsonl", "en/rows.jsonl", "rows.jsonl"]),
        ("en/**", ["en/deep/er/rows.jsonl", "en/rows.jsonl"]),
        ("*", sorted(name for name in NAMES if "/" not in name and name[0] not in "._")),
        ("_*", ["_SUCCESS"]),
        ("._*", ["._rows.jsonl"]),
        ("a+b.jsonl", ["a+b.jsonl"]),
        ("*.parquet", []),
    ],
)
def test_pattern_means(pattern: str, means: list[str]) -> None:
    assert matching(pattern, NAMES) == means


@pytest.mark.parametrize(
    ("path", "folder", "pattern"),
    [
        ("data/en/*.jsonl", "data/en", "*.jsonl"),
        ("data/*/part-?.jsonl", "data", "*/part-?.jsonl"),
        ("*.jsonl", "", "*.jsonl"),
        ("data/rows.jsonl", "data", "rows.jsonl"),
        ("rows.jsonl", "", "rows.jsonl"),
    ],
)
def test_pattern_is_looked_for_below_its_last_fixed_folder(path: str, folder: str, pattern: str) -> None:
    assert split_pattern(path) == (folder, pattern)
