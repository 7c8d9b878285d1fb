"""Which report is accepted: the newer one, and in the end the pod's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_operator.progress.accept import GOES_ON, Attempt, Mark, Position, accept
from sluice_operator.progress.refusal import Refusal, Refused


def pod(attempt: int, newest: int = 0) -> Attempt:
    return Attempt(attempt, f"job-{attempt}", newest)


def heard(sequences: list[int]) -> list[int]:
    """Those that are accepted."""
    mark, accepted = Mark(), []
    for sequence in sequences:
        mark = mark.after(sequence)
        if mark.accepted:
            accepted.append(sequence)
    return accepted


@pytest.mark.parametrize(
    ("rule", "sequences", "accepted"),
    [
        ("each is newer", [1, 2, 3], [1, 2, 3]),
        ("a gap: reports may be lost", [1, 9], [1, 9]),
        ("a replay", [1, 1, 1, 1, 2], [1, 2]),
        ("one came late", [1, 3, 2, 4], [1, 3, 4]),
        ("two came late", [1, 4, 2, 3, 5], [1, 4, 5]),
        ("the same ones come again and again", [9, 1, 2, 1, 2, 1, 2, 1, 2], [9]),
        ("one that counts far past the pod is gone", [1, 2, 10**9, 3, 4, 5, 6], [1, 2, 10**9, 5, 6]),
        ("or goes on", [1, 9000, 2, 9001, 3, 9002, 4, 9003, 5, 9004], [1, 9000, 9001, 9002, 4, 9003, 5, 9004]),
    ],
)
def test_sequence_only_grows_unless_a_sender_continues_below(
    rule: str, sequences: list[int], accepted: list[int]
) -> None:
    assert heard(sequences) == accepted, rule


@given(st.lists(st.integers(1, 2**53)), st.integers(1, 1000))
def test_pod_is_accepted_again_after_any_forged_sequences(lies: list[int], first: int) -> None:
    own = list(range(first, first + GOES_ON + 1))
    assert heard([*lies, *own])[-1] == own[-1]


HEARD = Position(2, "job-2", Mark(10))


@pytest.mark.parametrize(
    ("rule", "last", "who", "report", "expected"),
    [
        ("the first report is accepted whatever its sequence", None, pod(1), (1, 7), None),
        ("the next sequence is accepted", HEARD, pod(2), (2, 11), None),
        ("a gap is accepted: reports may be lost", HEARD, pod(2), (2, 99), None),
        ("a newer attempt starts at any sequence", HEARD, pod(3), (3, 1), None),
        ("after a restart any sequence of the known attempt", Position.recovered(2), pod(2), (2, 1), None),
        ("an older attempt is fenced", HEARD, pod(1), (1, 99), Refusal.FENCED_ATTEMPT),
        ("after a restart too", Position.recovered(2), pod(1), (1, 99), Refusal.FENCED_ATTEMPT),
        ("and as soon as its successor has a Job", HEARD, pod(2, newest=3), (2, 11), Refusal.FENCED_ATTEMPT),
        ("a pod speaks of its own attempt only", HEARD, pod(2), (3, 1), Refusal.OTHER_ATTEMPT),
        ("one attempt is one Job", HEARD, Attempt(2, "other", 2), (2, 11), Refusal.FENCED_ATTEMPT),
    ],
)
def test_report_is_accepted_by_attempt_and_sequence(
    rule: str, last: Position | None, who: Attempt, report: tuple[int, int], expected: Refusal | None
) -> None:
    if expected is None:
        assert accept(last, who, *report) == Position(report[0], who.stage_job_uid, Mark(report[1])), rule
        return
    with pytest.raises(Refused) as refused:
        accept(last, who, *report)
    assert refused.value.refusal is expected, rule
