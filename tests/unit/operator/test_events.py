"""Events: in order by name and time, counted when they repeat, bounded."""

from datetime import UTC, datetime, timedelta

from sluice_operator.cluster import events
from sluice_operator.cluster.events import EventLog, Happened
from sluice_operator.observe.views import Key

NOW = datetime(2026, 11, 28, 12, 0, 0, 250_000, UTC)
JOB = Key("FineTuneJob", "team", "tone")


def happened(reason: str, message: str = "why", key: Key = JOB) -> Happened:
    return Happened(key, "uid", "Normal", reason, message)


def test_event_names_are_in_the_order_of_time() -> None:
    log = EventLog("sluice-0")
    moments = [NOW + timedelta(microseconds=step) for step in (0, 1, 10, 999, 1_000_000, 86_400_000_000)]
    made = [log.new(happened("Training"), at) for at in moments]
    names = [event["metadata"]["name"] for event in made]
    assert names == sorted({*names})
    assert {event["lastTimestamp"] for event in made[:4]} == {"2026-11-28T12:00:00Z"}


def test_repeated_event_is_counted_until_it_is_gone() -> None:
    log, what = EventLog("sluice-0"), happened("Claimed")
    assert log.again(what, NOW) is None
    log.written(what, log.new(what, NOW))
    for other in (
        happened("Claimed", "another"),
        happened("Binding"),
        happened("Claimed", key=Key("Adapter", "t", "a")),
    ):
        assert log.again(other, NOW) is None
    for count in (2, 3):
        place, patch = log.again(what, NOW + timedelta(seconds=count)) or (None, {})
        assert place is not None
        assert patch == {"count": count, "lastTimestamp": f"2026-11-28T12:00:0{count}Z"}
        log.written(what, {"metadata": {"name": place.name}, **patch})
    log.forget(what)
    assert log.again(what, NOW) is None


def test_event_of_a_cluster_scoped_object_is_in_default() -> None:
    event = EventLog("sluice-0").new(happened("PoolReady", key=Key("GPUPool", "", "a100")), NOW)
    assert (event["metadata"]["namespace"], event["involvedObject"]["namespace"]) == ("default", "")


def test_event_log_is_bounded() -> None:
    log = EventLog("sluice-0")
    for number in range(events._REMEMBERED + 10):
        what = happened("Training", str(number))
        log.written(what, log.new(what, NOW))
    assert len(log._sent) == events._REMEMBERED
    assert log.again(happened("Training", "0"), NOW) is None
