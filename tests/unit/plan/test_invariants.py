"""What holds after every step, whatever happens in whatever order."""

import os

from hypothesis import Phase as Search
from hypothesis import settings

from tests.unit.plan.state_machine import Lending

STEPS = 60
OPERATIONS = int(os.environ.get("SLUICE_SOAK_OPERATIONS", "3000"))
"""Of one run: a few with all tests, or as many as `make soak` says."""


class LendingAsleep(Lending):
    """The same with engines that keep their pods while they lend."""

    policies = ("Sleep", "Sleep", "ScaleDown")


Lending.TestCase.settings = LendingAsleep.TestCase.settings = settings(
    max_examples=OPERATIONS // STEPS,
    stateful_step_count=STEPS,
    phases=(Search.explicit, Search.reuse, Search.generate),  # shrinking a long story takes longer than reading it
)
TestLending = Lending.TestCase
TestLendingAsleep = LendingAsleep.TestCase
