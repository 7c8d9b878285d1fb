"""Which worker of pytest runs which tests."""

import re

from xdist.scheduler.loadscope import LoadScopeScheduling

_OTHER_JOURNEYS = (4, 5, 6, 9)
"""They take about as long as all the rest together."""
_JOURNEY = re.compile(r"tests/e2e/test_(\d+)_")


def share(test: str) -> str:
    """The name of what one worker runs as a whole: those with most tests first, then one test after another.

    Two journeys are under way at once, each worker's on a stage of its own. vLLM takes long to start and much memory:
    one at a time. With a fourth worker what gives way to journeys gets so little of two cores that it runs out of time.
    """
    if journey := _JOURNEY.match(test):
        return "journeys-2" if int(journey[1]) in _OTHER_JOURNEYS else "journeys-1"
    return "vllm" if test.startswith("tests/contract/") else test


class Scheduling(LoadScopeScheduling):
    """Each share goes to the next worker that is free."""

    def _split_scope(self, nodeid: str) -> str:
        return share(nodeid)
