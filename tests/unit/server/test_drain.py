"""A slot that drains: what clients, the kubelet and the operator see of it."""

import asyncio
import os
import sys
from typing import Any

import pytest

from sluice_api import pods
from sluice_server import wait_drained
from sluice_server.agent import reporting
from sluice_server.agent.resources import must_drain
from sluice_server.paths import QUIET_SECONDS, ROOT_ENV, SERVE_PORT_ENV, SHUTDOWN_SECONDS
from tests.unit.server.conftest import SPEC, SlotUnderTest, eventually
from tests.unit.server.fake_vllm import BASE


async def test_draining_slot_is_not_ready_and_may_serve_again(slot: SlotUnderTest) -> None:
    await slot.start_all()
    await eventually(slot.ready)
    await slot.set_status("Draining")
    await eventually(lambda: slot.operator.reports[-1]["draining"])
    assert not await slot.ready()
    url = f"http://127.0.0.1:{slot.paths.serve_port}/v1/completions"
    async with slot.http.post(url, json={"model": BASE, "prompt": "x"}) as answer:
        assert (answer.status, answer.headers["connection"]) == (200, "close")
    await slot.set_status("Serving")
    await eventually(lambda: not slot.operator.reports[-1]["draining"])
    await eventually(slot.ready)
    async with slot.http.post(url, json={"model": BASE, "prompt": "x"}) as answer:
        assert "connection" not in answer.headers


async def test_in_flight_is_reported_while_draining(slot: SlotUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only as often as otherwise: here that would be once an hour."""
    monkeypatch.setattr(reporting, "_EVERY_SECONDS", 3600)
    await slot.start_all()
    await eventually(slot.ready)
    slot.vllm.hold.clear()
    in_flight = asyncio.create_task(slot.ask(BASE))
    await eventually(lambda: slot.vllm.seen)
    await slot.set_status("Draining")
    await eventually(lambda: slot.operator.reports[-1]["draining"] and slot.operator.reports[-1]["inFlight"] == 1)
    slot.vllm.hold.set()
    assert (await in_flight)[0] == 200
    await eventually(lambda: slot.operator.reports[-1]["inFlight"] == 0)


async def test_draining_slot_without_a_vllm(slot: SlotUnderTest) -> None:
    await slot.start()
    await slot.set_status("Draining")
    await slot.start_agent()
    report = await eventually(
        lambda: next((report for report in slot.operator.reports if report["draining"]), None), seconds=15
    )
    assert (report["inFlight"], report["serving"]) == (0, False)


@pytest.mark.parametrize(
    ("rule", "slots", "expected"),
    [
        ("the status has no slots", [], False),
        ("another slot is Draining", [{"index": 0, "state": "Draining", "pod": "me"}], False),
        ("this pod is Draining", [{"index": 1, "state": "Draining", "pod": "me"}], True),
        ("Draining, no pod is named", [{"index": 1, "state": "Draining"}], True),
        ("an earlier pod is Draining", [{"index": 1, "state": "Draining", "pod": "before"}], False),
        ("this pod is Lent", [{"index": 1, "state": "Lent", "pod": "me"}], True),
        ("this pod is Sleeping", [{"index": 1, "state": "Sleeping", "pod": "me"}], True),
        ("this pod is Reclaiming", [{"index": 1, "state": "Reclaiming", "pod": "me"}], True),
        ("Lent before this pod came", [{"index": 1, "state": "Lent"}], False),
        ("a state of a newer operator", [{"index": 1, "state": "Dreaming", "pod": "me", "mood": "well"}], False),
    ],
)
def test_must_drain(rule: str, slots: list[dict[str, Any]], expected: bool) -> None:
    assert must_drain({"status": {"slots": slots}}, 1, "me") is expected
    assert must_drain(None, 1, "me") is False


async def pre_stop(slot: SlotUnderTest, drain_timeout: int) -> str:
    spec = SPEC.model_copy(
        update={
            "spec": SPEC.spec.model_copy(
                update={"preemption": SPEC.spec.preemption.model_copy(update={"drain_timeout_seconds": drain_timeout})}
            )
        }
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        ROOT_ENV: str(slot.paths.root),
        SERVE_PORT_ENV: str(slot.paths.serve_port),
        pods.SLOT_ENV: spec.to_json(),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sluice_server", "wait-drained",
        env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    return output.decode()


async def test_pre_stop_waits_for_requests_in_flight(slot: SlotUnderTest) -> None:
    await slot.start_all()
    await eventually(slot.ready)
    slot.vllm.hold.clear()
    in_flight = asyncio.create_task(slot.ask(BASE))
    await eventually(lambda: slot.vllm.seen)
    hook = asyncio.create_task(pre_stop(slot, drain_timeout=30))
    await eventually(lambda: slot.operator.reports[-1]["draining"])
    assert not await slot.ready()
    slot.vllm.hold.set()
    assert (await in_flight)[0] == 200
    output = await hook
    assert float(output.split()[1]) >= QUIET_SECONDS  # A client may not have heard yet that the pod is going.
    assert output.endswith("s: 0 in flight\n")
    # Drained already: a second hook, or one after the operator's own drain, has nothing to wait for.
    assert await pre_stop(slot, drain_timeout=30) == "waited 0.0 s: 0 in flight\n"


async def test_pre_stop_ends_at_drain_timeout_seconds(slot: SlotUnderTest) -> None:
    await slot.start_all()
    await eventually(slot.ready)
    slot.vllm.hold.clear()
    in_flight = asyncio.create_task(slot.ask(BASE))
    await eventually(lambda: slot.vllm.seen)
    output = await pre_stop(slot, drain_timeout=1)
    assert 1 + QUIET_SECONDS <= float(output.split()[1]) < 2 + QUIET_SECONDS
    assert output.endswith("1 in flight\n")
    slot.vllm.hold.set()
    await in_flight


async def test_pre_stop_does_not_wait_for_a_dead_vllm(slot: SlotUnderTest) -> None:
    await slot.start()
    await slot.start_agent()
    output = await pre_stop(slot, drain_timeout=30)
    assert output == "waited 0.0 s: nobody listens\n"


def test_grace_margin_covers_the_shutdown() -> None:
    assert pods.GRACE_MARGIN_SECONDS >= QUIET_SECONDS + SHUTDOWN_SECONDS + 5
    assert wait_drained.__doc__


async def test_report_is_sent_again_until_a_leader_accepts_it(slot: SlotUnderTest) -> None:
    slot.operator.status = 503
    await slot.start_all()
    await eventually(slot.ready)
    await slot.operator.arrived.wait()
    await asyncio.sleep(0.5)  # Whatever was news has been tried by now.
    slot.paths.at(pods.TOKEN_FILE).write_text("rotated\n")
    slot.operator.status = 202
    await eventually(lambda: slot.operator.reports)
    assert slot.operator.tokens[-1] == "Bearer rotated"
    report = await eventually(lambda: slot.operator.reports[-1]["serving"] and slot.operator.reports[-1])
    assert report["message"] == ""
    sequences = [report["sequence"] for report in slot.operator.reports]
    assert sequences == sorted(set(sequences))
