"""All plans: each is a journey and one thing that goes wrong in it.

Where things can go wrong is recorded: records/*.json has the writes of each undisturbed journey and how many events of
each kind its watches bring, both at least. So the list of plans is the same on every machine.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tests.integration.faults.journeys import JOURNEYS
from tests.integration.faults.outcome import Outcome

RECORDS = Path(__file__).parent / "records"


class Kind(StrEnum):
    """What goes wrong."""

    KILL_BEFORE = "kill-before"
    """The operator is killed; its write never arrives. A new process follows."""
    KILL_AFTER = "kill-after"
    """The operator is killed when its write has taken effect, before it knows."""
    ANSWER_409 = "answer-409"
    ANSWER_429 = "answer-429"
    ANSWER_500 = "answer-500"
    ANSWER_503 = "answer-503"
    RESET_BEFORE = "reset-before"
    RESET_AFTER = "reset-after"
    SILENCE_BEFORE = "silence-before"
    """No answer until the operator loses its patience; the write never arrives."""
    SILENCE_AFTER = "silence-after"
    """No answer until the operator loses its patience; the write has taken effect."""
    PAUSE = "pause"
    """SIGSTOP with the write under way, which arrives when the next one leads; then SIGCONT."""
    ETCD = "etcd"
    """etcd is killed and started again."""
    STALE_LIST = "stale-list"
    """The watch of a kind has to list anew, and sees that kind as it was before its last change."""
    EVENT_LOST = "event-lost"
    EVENT_LATE = "event-late"
    EVENT_410 = "event-410"
    """Instead of the event the watch says that it cannot go on."""
    EVENT_CUT = "event-cut"
    """The connection breaks before the event."""
    SLOW = "slow"
    """Every answer takes longer."""


AT_EVERY_WRITE = (
    Kind.KILL_BEFORE,
    Kind.KILL_AFTER,
    Kind.ANSWER_409,
    Kind.ANSWER_429,
    Kind.ANSWER_500,
    Kind.ANSWER_503,
    Kind.RESET_BEFORE,
    Kind.RESET_AFTER,
)
AT_EVERY_CHANGE = (Kind.SILENCE_BEFORE, Kind.SILENCE_AFTER, Kind.PAUSE)
"""At writes that are not only words: these plans take several seconds more."""
AT_SOME_CHANGES = (Kind.ETCD,)
AT_EVERY_EVENT = (Kind.EVENT_LOST,)
AT_SOME_EVENTS = (Kind.EVENT_LATE, Kind.EVENT_410, Kind.EVENT_CUT, Kind.STALE_LIST)
SOME = 4
"""Every fourth."""
DELAYS = (0.05, 0.2, 0.5)


@dataclass(frozen=True, order=True)
class Plan:
    """One journey with one fault."""

    journey: str
    kind: Kind
    at: str
    """The write, the kind of the watch, or by how much."""
    number: int = 1
    """At which of several."""

    @property
    def id(self) -> str:
        """By which a person runs it alone."""
        return f"{self.journey}:{self.kind}:{self.at.replace(' ', '_')}:{self.number}"


@dataclass(frozen=True)
class Record:
    """What an undisturbed run of a journey does."""

    writes: dict[str, int]
    """How often each write is made, at least."""
    events: dict[str, int]
    """How many events each kind's watch brings, at least."""
    outcome: Outcome

    @classmethod
    def read(cls, journey: str) -> "Record":
        """As it was recorded."""
        found = json.loads(path_of(journey).read_text())
        return cls(found["writes"], found["events"], Outcome(**found["outcome"]))


def path_of(journey: str) -> Path:
    """Where a journey's record is."""
    return RECORDS / f"{journey}.json"


def all_plans() -> list[Plan]:
    """Every plan there is, always in the same order."""
    recorded = [journey for journey in JOURNEYS if path_of(journey).exists()]
    return [plan for journey in recorded for plan in plans_of(journey, Record.read(journey))]


def plans_of(journey: str, record: Record) -> Iterator[Plan]:
    """Every plan for one journey."""
    writes = [(name, n) for name, times in record.writes.items() for n in range(1, times + 1)]
    changes = [(name, n) for name, n in writes if not only_says(name)]
    events = [(plural, n) for plural, times in record.events.items() for n in range(1, times + 1)]
    for kinds, moments in (
        (AT_EVERY_WRITE, writes),
        (AT_EVERY_CHANGE, changes),
        (AT_SOME_CHANGES, changes[::SOME]),
        (AT_EVERY_EVENT, events),
        (AT_SOME_EVENTS, events[::SOME]),
    ):
        for kind in kinds:
            yield from (Plan(journey, kind, at, number) for at, number in moments)
    yield from (Plan(journey, Kind.SLOW, f"{delay} s") for delay in DELAYS)


def only_says(write: str) -> bool:
    """Whether a write tells people something, and nothing else follows from it."""
    return write == "tell events" or ".status " in write
