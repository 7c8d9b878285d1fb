"""Whatever a tenant's pods say of themselves, the status can be written, is small, and can be read at a terminal."""

import json
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from pydantic import ValidationError

from sluice_api.adapter import Adapter, AdapterSource
from sluice_api.finetunejob import FineTuneJobSpec, Result
from sluice_api.meta import OUTCOMES_ANNOTATION, work_folder
from sluice_api.model import Model
from sluice_api.quantity import decimal
from sluice_api.reports import LoadedState
from sluice_operator.cluster.events import EventLog, Happened
from sluice_operator.observe.views import Key
from sluice_operator.plan.job.decide import plan_job
from sluice_operator.settings import Limits
from sluice_operator.status.adapter import adapter_status
from sluice_operator.status.job import job_status
from tests.unit.plan.worlds import NOW, WorldBuilder

MOST_BYTES = 128 << 10
UNSHOWN = [chr(code) for code in [*range(32), *range(127, 160), 0x202E, 0x2066] if chr(code) not in "\t\n"]
ANY = st.one_of(
    st.text(max_size=64),
    st.sampled_from(["\x1b[2J\x1b[31mReady", "\u202eydaeR", "😀" * 64, "\x00\x07\x9b", "x\r\nReady: True"]),
)
LONG = ANY.map(lambda text: (text * 2000)[:2000])
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def records(draw: st.DrawFn) -> str:
    """What a job's pods may have left behind, as the operator records it."""
    ended = {"reason": draw(ANY), "message": draw(LONG), "node": "n" * 253, "by": draw(ANY), "step": 2**53 - 1}
    trained = {"step": 1, "totalSteps": 1, "evaluationLossBefore": draw(NUMBERS), "evaluationLossAfter": draw(NUMBERS)}
    exported = {"uri": f"pvc://{'u' * 1018}", "digest": draw(ANY) * 2, "sizeBytes": 1}
    prepared = {
        **dict.fromkeys(["rows", "validationRows", "refusedRows", "tokens", "lossTokens", "steps"], 2**53 - 1),
        "estimatedGpuMemoryBytes": 2**53 - 1,
        "problems": [(draw(ANY) * 200)[:200]] * 3,
    }
    done = [
        {"stage": "Prepare", "attempt": 1, "reason": "Done", "prepare": prepared},
        *({"stage": "Train", "attempt": number, **ended} for number in range(1, draw(st.integers(1, 9)))),
        {"stage": "Train", "attempt": 10, "reason": draw(st.sampled_from(["Done", "TrainerFailed"])), "train": trained},
        {"stage": "Export", "attempt": 1, "reason": "Done", "export": exported},
    ]
    return json.dumps({"attempts": done[: draw(st.integers(1, len(done)))]}, ensure_ascii=False)


def texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    match value:
        case str():
            yield value
        case dict() | list():
            for part in value.values() if isinstance(value, dict) else value:
                yield from texts(part)


def is_small_and_plain(status: Model) -> bool:
    """Whether the status, as it is written, is small and has nothing in it that a terminal would obey."""
    written = status.to_json()
    shown = "".join(texts(json.loads(written)))
    return len(written.encode()) < MOST_BYTES and not any(sign in shown for sign in UNSHOWN)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(record=records())
def test_status_of_a_job_is_small_and_plain(record: str) -> None:
    builder = WorldBuilder()
    builder.pool()
    builder.node(1)
    job = builder.job("x", publish={"engine": "chat", "name": "x"})
    metadata = job.metadata.model_copy(update={"annotations": {OUTCOMES_ANNOTATION: record}, "resource_version": "99"})
    builder.put(job := job.model_copy(update={"metadata": metadata}))
    decision = plan_job(builder.world, job, NOW, Limits())
    assert is_small_and_plain(job_status(builder.world, job, decision, NOW))


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(message=LONG, reason=ANY, version=ANY)
def test_status_of_an_adapter_is_small_and_plain(message: str, reason: str, version: str) -> None:
    builder = WorldBuilder()
    builder.pool()
    builder.node(1)
    engine = builder.engine("chat", 1, lora={"volumeClaims": ["adapters"]})
    adapter = Adapter.model_validate(
        {
            "metadata": {"name": "x", "namespace": "team", "uid": "x", "generation": 1, "resourceVersion": "99"},
            "spec": {"engine": "chat", "source": {"uri": "pvc://adapters/x"}},
        }
    )
    said = {"name": "x", "generation": 1, "version": version, "state": "Failed", "reason": reason}
    pod = builder.slot(engine, 0, node="n1")
    assert pod
    builder.report(pod, 0, adapters=[{**said, "message": message[:1024]}])
    status = adapter_status(builder.world, adapter, NOW)
    assert status.replicas[0].state is LoadedState.FAILED
    assert is_small_and_plain(status)


@given(message=LONG)
def test_message_of_an_event_is_plain(message: str) -> None:
    what = Happened(Key("FineTuneJob", "team", "x"), "x", "Warning", "TrainerFailed", message)
    said = EventLog("sluice-0").new(what, NOW)["message"]
    assert len(said) <= 1024
    assert [sign for sign in UNSHOWN if sign in said] == []


@pytest.mark.parametrize("loss", [1e308, -1e308, 0.0, 2.34567])
def test_loss_of_any_size_is_shown(loss: float) -> None:
    """A loss of 300 digits did not fit its field, and the job was set aside when it was done."""
    assert len(decimal(loss, 4)) < 32


def test_longest_output_has_room_for_its_export() -> None:
    """What a job makes can be written into its status and its Adapter, or it would fail after it has trained."""
    longest = f"s3://bucket/{'o' * 500}"
    spec = FineTuneJobSpec.model_validate(
        {"model": {"uri": "pvc://m"}, "dataset": {"uri": "pvc://d"}, "output": {"uri": longest}}
    )
    made = f"{spec.output.uri}/{work_folder('j' * 63, 'u' * 36)}/export"
    assert Result(uri=made).uri == AdapterSource(uri=made).uri == made
    with pytest.raises(ValidationError):
        FineTuneJobSpec.model_validate({**spec.model_dump(), "output": {"uri": f"{longest}o"}})
