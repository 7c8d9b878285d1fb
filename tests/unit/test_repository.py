"""What holds for every file of the repository."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dev.cache import REPOSITORY
from dev.lock import LOCKS, Lock

LONGEST = 410
"""A Python file that grows past about 400 lines has two jobs."""
TABLE = "operator/sluice_api/reasons.py"
"""It has one: five lines for each reason."""


def files(pattern: str = "*") -> list[Path]:
    """Files of the checkout, whether committed yet or not, relative to its root."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", pattern],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [Path(name) for name in sorted(set(listed.stdout.split())) if (REPOSITORY / name).is_file()]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: str(lock.file))
def test_lock_file_is_current_and_names_no_index(lock: Lock) -> None:
    text = (REPOSITORY / lock.file).read_text()
    assert text.splitlines()[1].strip("# ") == "python3 -m dev lock"
    assert not re.search(r"^--(index|extra-index|find-links)", text, re.MULTILINE)
    locked = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", text, re.MULTILINE))
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for asked in (Requirement(line) for extra in lock.extras for line in extras[extra]):
        name = canonicalize_name(asked.name)
        assert name in locked, f"{lock.file} lacks {name}: `python3 -m dev lock`"
        assert asked.specifier.contains(locked[name], prereleases=True), f"{name}: `python3 -m dev lock`"


def test_no_file_has_two_jobs() -> None:
    lengths = {str(file): len((REPOSITORY / file).read_text().splitlines()) for file in files("*.py")}
    assert not {name: length for name, length in lengths.items() if length > LONGEST and name != TABLE}


def test_the_folder_operator_is_no_package() -> None:
    assert not (REPOSITORY / "operator" / "__init__.py").exists()  # It would hide Python's own `operator`.


def test_no_path_of_one_machine() -> None:
    homes = re.compile(r"(?<![\w$}])/(root/\.cache|home/[a-z]+|work)/")
    found = [str(file) for file in files() if homes.search((REPOSITORY / file).read_text(errors="replace"))]
    assert not [name for name in found if name != "tests/unit/test_repository.py"]
