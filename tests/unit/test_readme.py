"""The README: each command is run by a test or has a reason why it is not, and the message is the code's own."""

import re

from dev.cache import REPOSITORY
from tests.unit.pages import commands
from tests.unit.plan.worlds import allocated, parse

RUN_BY = {
    "helm": "tests/e2e/test_1_readme.py",
    "kubectl": "tests/e2e/test_1_readme.py",
    "curl": "tests/e2e/test_1_readme.py",
    "uv": "tests/contract/test_trainer_alone.py",
    "PYTHONPATH=operator:trainer_image": "tests/contract/test_trainer_alone.py",
}
"""By a command's first word."""
BY_HAND = {
    "make demo": "takes as long as all journeys together, and shows what they prove; before each release",
    "make down": "removes the cluster that the tests use",
}


def test_each_command_of_the_readme_is_run_by_a_test() -> None:
    found = commands(REPOSITORY / "README.md")
    tried = [command for command in found if command.split()[0] in RUN_BY]
    assert len(tried) > 9
    assert {*found} - {*tried} == {*BY_HAND}
    assert all((REPOSITORY / file).is_file() for file in RUN_BY.values())


def test_the_message_that_the_readme_shows_is_what_a_waiting_job_says() -> None:
    town = parse("pool: 2 gpus | chat: 2 replicas, floor 1 | report-writer: needs 1, takes chat/1 on n1 | a: needs 1")
    (wait,) = allocated(town).waits.values()
    assert _without_time(wait.message) in _without_time((REPOSITORY / "README.md").read_text())


def _without_time(text: str) -> str:
    return " ".join(re.sub(r"since [\d-]+ [\d:]+ UTC", "since then", text).split())
