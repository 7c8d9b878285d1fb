"""The suite itself: who shares a worker, and the table at its end."""

from pathlib import Path

import pytest

from tests.scheduling import in_order, share
from tests.slowest import Suite

REPORT = """<testsuites><testsuite time="90.5" timestamp="2026-11-28T21:00:00+00:00">
  <testcase classname="tests.unit.plan.test_dra" name="test_one[1]" time="0.25" />
  <testcase classname="tests.e2e.test_4_two_jobs" name="test_waits" time="60.0" />
  <testcase classname="tests.unit.plan.test_invariants.TestLending" name="runTest" time="3.0" />
</testsuite></testsuites>"""


@pytest.mark.parametrize(
    ("test", "worker"),
    [
        ("tests/unit/plan/test_dra.py::test_one", "tests/unit/plan/test_dra.py::test_one"),
        ("tests/e2e/test_1_readme.py::test_commands", "journeys-1"),
        ("tests/e2e/test_11_budget_and_autoscaler.py::test_disruption_budget", "journeys-2"),
        ("tests/e2e/test_9_preemption.py::test_training_gives_way", "journeys-1"),
        ("tests/integration/test_crds.py::test_one[a::b]", "tests/integration/test_crds.py"),
        ("tests/contract/test_vllm.py::test_models[real]", "vllm"),
    ],
)
def test_journeys_and_real_vllm_have_a_worker_of_their_own(test: str, worker: str) -> None:
    assert share(test) == worker


@pytest.mark.parametrize(
    ("rule", "tests", "order"),
    [
        (
            "who computes is among those who wait, the trainer last",
            "unit/plan/a::1 unit/trainer/b::1 unit/trainer/b::2 contract/c::1 integration/d::1 integration/d::2 "
            "integration/e::1 e2e/test_2_f::1 e2e/test_1_g::1",
            "e2e/test_2_f::1 e2e/test_1_g::1 contract/c::1 integration/d::1 integration/d::2 unit/plan/a::1 "
            "integration/e::1 unit/trainer/b::1 unit/trainer/b::2",
        ),
        ("some alone", "unit/trainer/b::1 unit/plan/a::1", "unit/plan/a::1 unit/trainer/b::1"),
        ("none", "", ""),
    ],
)
def test_in_which_order_tests_run(rule: str, tests: str, order: str) -> None:
    assert in_order(f"tests/{test}" for test in tests.split()) == [f"tests/{test}" for test in order.split()], rule


def test_slowest_tests_are_told_with_the_budget(tmp_path: Path) -> None:
    file = tmp_path / "tests.xml"
    file.write_text(REPORT)
    suite = Suite.read(file)
    assert [line.split() for line in suite.slowest()] == [
        ["60.0", "s", "e2e", "test_4_two_jobs::test_waits"],
        ["3.0", "s", "unit", "TestLending::runTest"],
        ["0.2", "s", "unit", "test_dra::test_one[1]"],
    ]
    assert suite.total == "3 tests in 1 min 30 s, of 25 min on two idle cores"
