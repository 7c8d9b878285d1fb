"""What the tests took, by the reports that `pytest --junitxml` has written: `python3 -m tests.slowest REPORT ...`.

A test's time is that of its call and of the fixtures that were made for it first.
"""

import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

BUDGET_MINUTES = 25
"""For all tests, on two cores that nobody else uses, when all is built. Who adds a test stays within it."""
SLOWEST = 10


@dataclass(frozen=True)
class Case:
    """One test."""

    folder: str
    """Of tests/."""
    name: str
    seconds: float


@dataclass(frozen=True)
class Suite:
    """All tests of one or several calls of pytest."""

    began: datetime
    seconds: float
    cases: tuple[Case, ...]

    @classmethod
    def read(cls, *reports: Path) -> "Suite":
        """What they say together; each call began when the one before had ended."""
        suites = [suite for report in reports for suite in ElementTree.parse(report).iter("testsuite")]
        began = min(datetime.fromisoformat(suite.attrib["timestamp"]) for suite in suites)
        return cls(
            began.astimezone(UTC),
            sum(float(suite.attrib["time"]) for suite in suites),
            tuple(_case(case) for suite in suites for case in suite.iter("testcase")),
        )

    def slowest(self) -> list[str]:
        """A line for each of the slowest tests."""
        longest = sorted(self.cases, key=lambda case: -case.seconds)[:SLOWEST]
        return [f"{case.seconds:>7.1f} s  {case.folder:<12} {case.name}" for case in longest]

    def folders(self) -> list[str]:
        """A line for each folder of tests: how many, and the sum of their seconds."""
        lines = []
        for folder in dict.fromkeys(case.folder for case in self.cases):
            seconds = [case.seconds for case in self.cases if case.folder == folder]
            lines.append(f"{folder:<12}{len(seconds):>6} tests{sum(seconds):>8.0f} s")
        return lines

    @property
    def total(self) -> str:
        """How long it took, and how long it may take."""
        minutes, seconds = divmod(round(self.seconds), 60)
        return f"{len(self.cases)} tests in {minutes} min {seconds} s, of {BUDGET_MINUTES} min on two idle cores"


def _case(found: ElementTree.Element) -> Case:
    """`tests.unit.plan.test_dra` and `test_x[1]` are the folder unit and test_dra::test_x[1]."""
    _, folder, *_, module = found.attrib["classname"].split(".")
    return Case(folder, f"{module}::{found.attrib['name']}", float(found.attrib["time"]))


if __name__ == "__main__":
    suite = Suite.read(*map(Path, sys.argv[1:]))
    sys.stdout.write("\n".join(["== the slowest tests", *suite.slowest(), f"== {suite.total}", ""]))
