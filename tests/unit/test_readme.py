"""Every command that the README prints is run by a test, or has a reason why it is not."""

from dev.cache import REPOSITORY
from tests.unit.pages import commands

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
