"""What holds for every test: what hypothesis draws, what a failed assertion shows, and who waits for whom."""

import os

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer

from tests.scheduling import Scheduling, in_order

pytest.register_assert_rewrite("tests.e2e", "tests.integration", "tests.unit")

_GIVES_WAY = 10

settings.register_profile(
    "suite",
    # How long an example takes depends on who else uses the machine. pytest-timeout ends what hangs.
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    # The same examples each time, so that a change fails by what it changed; `make soak` draws new ones.
    derandomize="SLUICE_SOAK_OPERATIONS" not in os.environ,
    database=None,
    print_blob=True,
)
settings.load_profile("suite")


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling | None:
    """Ours where pytest is only told how many workers there are."""
    if config.getvalue("dist") != "load":
        return None
    config.option.loadscopereorder = False  # the order is that of in_order
    return Scheduling(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Journeys first, who computes among those who wait."""
    place = {test: number for number, test in enumerate(in_order(item.nodeid for item in items))}
    items.sort(key=lambda item: place[item.nodeid])


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Beside journeys on the real node, which take longest and wait most, all other tests take what those leave.

    A pod's share of a core is small; that of a test's process is not, but for its niceness. Journeys are collected
    first, and a worker that has begun with something else gets none.
    """
    beside = "PYTEST_XDIST_WORKER" in os.environ and item.session.items[0].get_closest_marker("e2e")
    if beside and not item.get_closest_marker("e2e") and os.nice(0) < _GIVES_WAY:
        os.nice(_GIVES_WAY)
