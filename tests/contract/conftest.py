"""Longer timeouts, because real vLLM takes its time to start."""

from pathlib import Path

import pytest

LONGEST_TEST = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of this folder LONGEST_TEST seconds, unless they have a timeout of their own."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LONGEST_TEST))
