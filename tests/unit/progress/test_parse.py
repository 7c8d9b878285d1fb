"""Hostile bodies: each is refused with a word about what is wrong, and none takes long."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice_api.reports import MAX_REPORT_BYTES, EngineReport, TrainingReport
from sluice_operator.progress.parse import MAX_DEPTH, depth, parse
from sluice_operator.progress.refusal import Refusal, Refused

GOOD: dict[str, Any] = {"attempt": 1, "sequence": 2, "activity": "Training", "step": 3, "totalSteps": 9, "loss": 1.5}


def body(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


def refused(bad: bytes, kind: type[TrainingReport] | type[EngineReport] = TrainingReport) -> str:
    with pytest.raises(Refused) as error:
        parse(kind, bad)
    assert error.value.refusal is Refusal.MALFORMED
    return error.value.message


def test_valid_report_is_parsed() -> None:
    assert parse(TrainingReport, body()).loss == 1.5


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b"", "body: Invalid JSON"),
        (b"[]", "body: "),
        (b"not json", "body: Invalid JSON"),
        (b'{"attempt": 1', "body: Invalid JSON"),
        (body(loss=float("nan")), "loss: Input should be a finite number"),
        (body(loss=float("inf")), "loss: Input should be a finite number"),
        (body(loss="2.5"), "loss: Input should be a valid number"),
        (body(step=-1), "step: "),
        (body(step="3"), "step: Input should be a valid integer"),
        (body(step=2**60), "step: above"),
        (body(stepSeconds=1e308), "stepSeconds: Input should be less than or equal to 31536000"),
        (body(secondsLeft=2**53 - 1), "secondsLeft: Input should be less than or equal to 315360000"),
        (body(activity="Dancing"), "activity: Input should be"),
        (body(evil=1), "evil: Extra inputs are not permitted"),
        (body(total_steps=1), "total_steps: Extra inputs are not permitted"),
        (b"[" * 5000 + b"]" * 5000, f"nested deeper than {MAX_DEPTH}"),
        (b'{"a":' * 5000, f"nested deeper than {MAX_DEPTH}"),
    ],
)
def test_invalid_report_is_refused_with_the_field(bad: bytes, said: str) -> None:
    assert refused(bad).startswith(said)


def test_refusal_message_is_short_and_holds_no_value() -> None:
    message = refused(json.dumps({f"k{'x' * 1000}{n}": "secret" for n in range(50)}).encode())
    assert len(message) < 1000
    assert "secret" not in message
    assert "more" in message


def test_report_of_too_many_adapters_is_refused() -> None:
    adapter = {"name": "a", "generation": 1, "state": "Loaded"}
    state = {"sequence": 1, "serving": True, "draining": False, "inFlight": 0}
    assert len(parse(EngineReport, json.dumps(state | {"adapters": [adapter] * 256}).encode()).adapters) == 256
    assert "adapters" in refused(json.dumps(state | {"adapters": [adapter] * 257}).encode(), EngineReport)
    assert "generation: above" in refused(
        json.dumps(state | {"adapters": [adapter | {"generation": 2**60}]}).encode(), EngineReport
    )


def test_depth_ignores_brackets_in_strings() -> None:
    assert depth(json.dumps({"a": ["[[[[", '"[[', "\\"]}).encode()) == 2


@pytest.mark.parametrize("bomb", [b'"', b'\\"', b'"\\', b"[", b"]", b"{}", b"1", b'"\\"'])
def test_hostile_body_is_refused_in_linear_time(bomb: bytes) -> None:
    """Twenty times what is let in: work that grows faster than the body would outlast any test's time here."""
    size = 20 * MAX_REPORT_BYTES
    refused((bomb * size)[:size])


@settings(max_examples=30)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
    )
)
def test_any_json_is_a_report_or_refused(value: Any) -> None:
    refused(json.dumps(value).encode())


@given(st.binary())
def test_any_bytes_are_a_report_or_refused(value: bytes) -> None:
    refused(value)
