"""Which objects an engine's report concerns."""

from typing import Any

import pytest

from sluice_api.reports import EngineReport, LoadedAdapter, LoadedState
from sluice_operator.progress.effects import concerned
from sluice_operator.progress.identity import Replica
from tests.unit.progress.worlds import REPLICA, SLOT, adapter, engine, whole

ENGINE, JOB = "InferenceEngine/team/chat", "FineTuneJob/team/tone"


def says(**changes: Any) -> EngineReport:
    known = {"sequence": 1, "serving": True, "draining": False, "in_flight": 3}
    return EngineReport(**(known | changes))


def loaded(name: str, state: LoadedState = LoadedState.LOADED) -> LoadedAdapter:
    return LoadedAdapter(name=name, generation=1, state=state)


@pytest.mark.parametrize(
    ("rule", "before", "after", "expected"),
    [
        ("the first report", None, says(), [ENGINE]),
        ("a repeated one", says(), says(sequence=2), []),
        ("requests in flight concern nobody before a drain", says(), says(in_flight=9, quiet_seconds=3.0), []),
        ("ready", says(serving=False), says(), [ENGINE]),
        ("why it is not", says(serving=False), says(serving=False, message="out of memory"), [ENGINE]),
        ("a drain begins", says(), says(draining=True), [ENGINE, JOB]),
        ("a drain goes on", says(draining=True), says(draining=True, in_flight=2), [ENGINE, JOB]),
        ("a drain is over", says(draining=True), says(), [ENGINE, JOB]),
        ("it sleeps", says(draining=True), says(draining=True, asleep=True), [ENGINE, JOB]),
        ("an adapter is there", says(), says(adapters=(loaded("a"),)), ["Adapter/team/a"]),
        (
            "an adapter has failed, another is gone, a third is as before",
            says(adapters=(loaded("a"), loaded("b"), loaded("c"))),
            says(adapters=(loaded("a", LoadedState.FAILED), loaded("c"))),
            ["Adapter/team/a", "Adapter/team/b"],
        ),
        ("nobody's adapter, or another engine's", says(), says(adapters=(loaded("x"), loaded("elsewhere"))), []),
    ],
)
def test_engine_report_concerns_the_objects_that_it_changes(
    rule: str, before: EngineReport | None, after: EngineReport, expected: list[str]
) -> None:
    world = whole(adapter("a"), adapter("b"), adapter("c"), adapter("elsewhere", "other")).world()
    assert [str(key) for key in concerned(world, Replica(REPLICA, SLOT, engine()), before, after)] == expected, rule
