"""Real vLLM takes its time to start."""

from pathlib import Path

import pytest

LONGEST_TEST = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is in this folder, where it says nothing else."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LONGEST_TEST))
