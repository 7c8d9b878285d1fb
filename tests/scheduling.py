"""In which order tests run, and which worker of pytest runs which."""

import re
from collections.abc import Iterable, Iterator
from itertools import groupby

from xdist.scheduler.loadscope import LoadScopeScheduling

_OTHER_JOURNEYS = (4, 5, 6, 11)
"""They take about as long as the rest until only those are left that have the cluster to themselves.

Those are all of the rest, so that one worker waits for nobody, and the other one has other tests meanwhile.
"""
_JOURNEY = re.compile(r"tests/e2e/test_(\d+)_")
_HARDEST = "tests/unit/trainer/"


def share(test: str) -> str:
    """The name of what one worker runs as a whole.

    Two journeys are under way at once, each worker's on a stage of its own. vLLM takes long to start and much memory:
    one at a time. With a fourth worker what gives way to journeys gets so little of two cores that it runs out of time.
    """
    if journey := _JOURNEY.match(test):
        return "journeys-2" if int(journey[1]) in _OTHER_JOURNEYS else "journeys-1"
    if test.startswith("tests/contract/"):
        return "vllm"
    return _module(test) if test.startswith("tests/integration/") else test


def in_order(tests: Iterable[str]) -> list[str]:
    """Journeys as they are, then real vLLM, then all the rest: who computes among those who wait.

    Tests against an API server wait most of their time, unit tests compute; side by side they leave no core idle. A
    module of the former, then so many of the latter; in the end the trainer's, which never wait.
    """
    folders: dict[str, list[str]] = {"e2e": [], "contract": [], "integration": [], "unit": []}
    for test in tests:
        folders[test.split("/")[1]].append(test)
    journeys, vllm, waiting, computing = folders.values()
    return [*journeys, *vllm, *_spread(computing, among=waiting)]


def _spread(computing: list[str], among: list[str]) -> Iterator[str]:
    computing = sorted(computing, key=lambda test: test.startswith(_HARDEST))
    modules = [list(module) for _, module in groupby(among, _module)]
    for number, module in enumerate(modules):
        yield from module
        yield from computing[_part(computing, number, modules) : _part(computing, number + 1, modules)]
    if not modules:
        yield from computing


def _part(computing: list[str], number: int, modules: list[list[str]]) -> int:
    return len(computing) * number // len(modules)


def _module(test: str) -> str:
    return test.partition("::")[0]


class Scheduling(LoadScopeScheduling):
    """Each share goes to the next worker that is free."""

    def _split_scope(self, nodeid: str) -> str:
        return share(nodeid)
