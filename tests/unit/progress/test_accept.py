"""Whatever the order in which reports arrive: what is accepted only grows, and the newest wins."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_operator.progress.accept import Attempt, Position, accept, accept_sequence
from sluice_operator.progress.refusal import Refusal, Refused


def pod(attempt: int, newest: int = 0) -> Attempt:
    return Attempt(attempt, f"job-{attempt}", newest)


positions = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), unique=True, min_size=1)


@given(positions.flatmap(st.permutations), st.data())
def test_accepted_reports_only_grow_and_end_at_the_newest(reports: list[tuple[int, int]], data: st.DataObject) -> None:
    replayed = [*reports, *data.draw(st.lists(st.sampled_from(reports)))]
    last: Position | None = None
    accepted = []
    for attempt, sequence in replayed:
        try:
            last = accept(last, pod(attempt), attempt, sequence)
        except Refused:
            continue
        accepted.append((attempt, sequence))
    assert all(before < after for before, after in pairwise(accepted))
    assert accepted[-1] == max(reports)


@given(st.lists(st.integers(1, 20), min_size=1))
def test_an_engines_sequence_only_grows(sequences: list[int]) -> None:
    last: int | None = None
    accepted = []
    for sequence in sequences:
        try:
            last = accept_sequence(last, sequence)
        except Refused:
            continue
        accepted.append(sequence)
    assert all(before < after for before, after in pairwise(accepted))
    assert last == max(sequences)


HEARD = Position(2, 10, "job-2")


@pytest.mark.parametrize(
    ("rule", "last", "who", "report", "expected"),
    [
        ("the first report is accepted whatever its sequence", None, pod(1), (1, 7), None),
        ("the next sequence is accepted", HEARD, pod(2), (2, 11), None),
        ("a gap is accepted: reports may be lost", HEARD, pod(2), (2, 99), None),
        ("a newer attempt starts at any sequence", HEARD, pod(3), (3, 1), None),
        ("after a restart any sequence of the known attempt", Position.recovered(2), pod(2), (2, 1), None),
        ("a replay is refused", HEARD, pod(2), (2, 10), Refusal.STALE_SEQUENCE),
        ("a reordered report is refused", HEARD, pod(2), (2, 9), Refusal.STALE_SEQUENCE),
        ("an older attempt is fenced", HEARD, pod(1), (1, 99), Refusal.FENCED_ATTEMPT),
        ("after a restart too", Position.recovered(2), pod(1), (1, 99), Refusal.FENCED_ATTEMPT),
        ("and as soon as its successor has a Job", HEARD, pod(2, newest=3), (2, 11), Refusal.FENCED_ATTEMPT),
        ("a pod speaks of its own attempt only", HEARD, pod(2), (3, 1), Refusal.OTHER_ATTEMPT),
        ("one attempt is one Job", HEARD, Attempt(2, "other", 2), (2, 11), Refusal.FENCED_ATTEMPT),
    ],
)
def test_rules(
    rule: str, last: Position | None, who: Attempt, report: tuple[int, int], expected: Refusal | None
) -> None:
    if expected is None:
        assert accept(last, who, *report) == Position(*report, who.stage_job_uid), rule
        return
    with pytest.raises(Refused) as refused:
        accept(last, who, *report)
    assert refused.value.refusal is expected, rule
