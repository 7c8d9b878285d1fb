"""Which names an address with wildcards means."""

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.parametrize("pattern", ["*a" * 30 + "*b", "**/a/" * 30 + "b", "?*" * 30 + "b", "**/*a*a*/" * 20 + "b"])
def test_pattern_takes_little_time_however_many_wildcards_it_has(pattern: str) -> None:
    """With backtracking each would take longer than anybody lives."""
    assert matching(pattern, ["a" * 1000, "a/" * 500 + "c", "aa/" * 300 + "c"]) == []


@given(st.lists(st.sampled_from(["a", "b", "*", "?", "**", "/", ".", "_"]), max_size=9), st.text("ab._/", max_size=9))
def test_pattern_means_what_its_definition_says(signs: list[str], name: str) -> None:
    pattern = "".join(signs)
    assert (matching(pattern, [name]) == [name]) == by_definition(pattern.split("/"), name.split("/"))


def by_definition(pattern: list[str], name: list[str]) -> bool:
    if not pattern or not name:
        return pattern == name
    head, *rest = pattern
    any_one = bool(name[0]) and name[0][0] not in "._"
    if head == "**":
        if not rest:
            return any_one and (len(name) == 1 or by_definition(pattern, name[1:]))
        return by_definition(rest, name) or (any_one and by_definition(pattern, name[1:]))
    if head[:1] in ("*", "?") and name[0][:1] in (".", "_"):
        return False
    return fnmatchcase(name[0], head) and by_definition(rest, name[1:])


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
