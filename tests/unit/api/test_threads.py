"""With how many threads a pod's processes compute on its CPUs."""

import pytest

from sluice_api.pods import threads


@pytest.mark.parametrize(
    ("cpu", "processes", "each"),
    [("100m", 1, 1), ("1", 1, 1), ("1900m", 1, 1), ("4", 1, 4), ("16", 8, 2), ("7", 8, 1), ("0", 1, 1)],
)
def test_threads_are_the_requested_cores(cpu: str, processes: int, each: int) -> None:
    assert threads(cpu, processes) == each
