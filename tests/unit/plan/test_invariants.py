"""What holds after every step, whatever happens in whatever order."""

import os

import pytest
from hypothesis import Phase as Search
from hypothesis import settings

from tests.unit.plan.stories import Lending

STEPS = 60
FEW, MANY = 30, int(os.environ.get("SLUICE_SOAK_OPERATIONS", "4000")) // STEPS
"""Stories of one run: before each commit; and with all tests, or as many as `make soak` says."""


def stories(examples: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        phases=(Search.explicit, Search.reuse, Search.generate),  # shrinking a long story takes longer than reading it
    )


class LendingForLong(Lending):
    """The same, many times."""


class LendingAsleep(Lending):
    """The same with engines that keep their pods while they lend."""

    policies = ("Sleep", "Sleep", "ScaleDown")


class LendingAsleepForLong(LendingAsleep):
    """The same, many times."""


Lending.TestCase.settings = LendingAsleep.TestCase.settings = stories(FEW)
LendingForLong.TestCase.settings = LendingAsleepForLong.TestCase.settings = stories(MANY)
TestLending = Lending.TestCase
TestLendingAsleep = LendingAsleep.TestCase
TestLendingAsleepForLong = pytest.mark.slow(LendingAsleepForLong.TestCase)
TestLendingForLong = pytest.mark.slow(LendingForLong.TestCase)
