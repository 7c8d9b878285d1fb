"""A slot whose GPUs are lent while its pod stays: the agent, the middleware, and a fake vLLM with a GPU to free."""

import asyncio
from typing import Any

import pytest

from sluice_api.inferenceengine import LendingPolicy, Preemption
from sluice_server.agent.sleep import SleepState, memory_in_use, must_sleep
from sluice_server.agent.vllm_client import Answer
from sluice_server.agent.wake_check import differs
from sluice_server.control import DesiredState, DeviceMemory, ObservedState
from sluice_server.paths import SECRET_HEADER, STATE_PATH
from tests.unit.server.conftest import SPEC, SlotUnderTest, eventually
from tests.unit.server.fake_sleep import GIB
from tests.unit.server.fake_vllm import BASE, ENDLESS
from tests.unit.server.test_drain import pre_stop


@pytest.fixture(params=[1, 2], ids=["level 1", "level 2"])
def sleeping_slot(slot: SlotUnderTest, request: pytest.FixtureRequest) -> SlotUnderTest:
    """A slot that sleeps while it is lent."""
    terms = Preemption(policy=LendingPolicy.SLEEP, sleep_level=request.param)
    slot.spec = SPEC.model_copy(
        update={"device": "cuda", "spec": SPEC.spec.model_copy(update={"preemption": terms})},
    )
    return slot


async def serving(slot: SlotUnderTest) -> str:
    """The slot serves, with an adapter; its version."""
    await slot.start_all()
    await slot.set_status("Serving")
    slot.put_adapter("tone")
    await slot.publish("tone", "tone")
    version: str = (await slot.until("tone", "Loaded"))["version"]
    await eventually(slot.ready)
    slot.vllm.calls.clear()
    return version


async def asleep(slot: SlotUnderTest) -> None:
    await slot.set_status("Draining")
    await slot.set_status("Sleeping")
    await eventually(lambda: slot.last_report["asleep"])


async def test_lent_slot_sleeps_and_wakes(sleeping_slot: SlotUnderTest) -> None:
    version, level = await serving(sleeping_slot), sleeping_slot.spec.sleep_level
    await sleeping_slot.set_status("Draining")
    await eventually(lambda: sleeping_slot.last_report["draining"])
    assert not sleeping_slot.vllm.calls  # A drain alone puts nothing to sleep.
    await sleeping_slot.set_status("Sleeping")
    await eventually(lambda: sleeping_slot.last_report["asleep"])
    assert sleeping_slot.vllm.calls == [f"sleep {level} wait"]
    assert not await sleeping_slot.ready()
    for model in (BASE, "tone"):
        assert (await sleeping_slot.ask(model))[0] == 503
    await sleeping_slot.set_status("Lent")
    sleeping_slot.vllm.sleep.trainers = 70 * GIB
    await asyncio.sleep(0.5)
    assert sleeping_slot.last_report["asleep"]  # What NVML counts is the trainer's.
    sleeping_slot.vllm.sleep.trainers = 0
    sleeping_slot.vllm.calls.clear()
    await sleeping_slot.set_status("Starting")
    await eventually(sleeping_slot.ready)
    woken = {
        1: ["wake all"],
        2: ["wake weights", "reload_weights", "wake kv_cache", f"unload {version}", f"load {version}"],
    }
    assert sleeping_slot.vllm.calls == woken[level]
    assert [(await sleeping_slot.ask(model))[0] for model in (BASE, "tone")] == [200, 200]
    assert not sleeping_slot.ended.is_set()
    await eventually(lambda: not sleeping_slot.last_report["asleep"])


async def test_sleeping_slot_has_no_metric_of_requests_in_flight(slot: SlotUnderTest) -> None:
    series = "sluice_agent_requests_in_flight 0.0"
    slot.spec = _sleeping_spec()
    await serving(slot)
    await eventually(lambda: slot.last_report["serving"])
    assert series in await slot.metrics()
    await asleep(slot)
    assert series not in await slot.metrics()
    await slot.set_status("Starting")
    await eventually(slot.ready)
    await eventually(lambda: slot.last_report["serving"])
    assert series in await slot.metrics()


@pytest.mark.parametrize("state", ["Draining", "Reclaiming", "Stopping", "Lent", "Dreaming", ""])
async def test_sleeping_slot_wakes_by_its_status_only(slot: SlotUnderTest, state: str) -> None:
    slot.spec = _sleeping_spec()
    await serving(slot)
    await asleep(slot)
    slot.vllm.calls.clear()
    if state:
        await slot.set_status(state)
    else:
        await slot.api.apply("inferenceengines", BASE, status={})
    await asyncio.sleep(0.5)
    assert not slot.vllm.calls
    assert not await slot.ready()
    await slot.set_status("Starting")
    await eventually(slot.ready)


def _sleeping_spec() -> Any:
    terms = Preemption(policy=LendingPolicy.SLEEP)
    return SPEC.model_copy(update={"device": "cuda", "spec": SPEC.spec.model_copy(update={"preemption": terms})})


async def test_asleep_is_reported_with_freed_memory_only(sleeping_slot: SlotUnderTest) -> None:
    """200 from /sleep proves nothing (vllm#47654)."""
    await serving(sleeping_slot)
    sleeping_slot.vllm.sleep.leaves = 16 * GIB
    await sleeping_slot.set_status("Sleeping")
    why = "vLLM sleeps, but 16.0 of 80.0 GiB of GPU 0 are in use; at most 14.4 may be."
    await eventually(lambda: sleeping_slot.last_report["message"] == why)
    assert not any(report["asleep"] for report in sleeping_slot.operator.reports)
    await sleeping_slot.set_status("Starting")  # The operator has given the claim up.
    await eventually(sleeping_slot.ready)
    assert not sleeping_slot.ended.is_set()
    sleeping_slot.vllm.sleep.leaves = 14 * GIB
    await asleep(sleeping_slot)


async def test_asleep_stays_reported_once_memory_was_free(slot: SlotUnderTest) -> None:
    """The trainer may come before the status says Lent, and NVML counts its memory too."""
    slot.spec = _sleeping_spec()
    await serving(slot)
    await asleep(slot)
    slot.vllm.sleep.trainers = 70 * GIB
    slot.operator.reports.clear()
    await eventually(lambda: len(slot.operator.reports) > 1)
    assert all(report["asleep"] for report in slot.operator.reports)


async def test_wake_check_is_due_after_each_sleep(slot: SlotUnderTest) -> None:
    slot.spec = _sleeping_spec()
    await serving(slot)
    for _ in range(2):
        await asleep(slot)
        await slot.set_status("Starting")
        await eventually(slot.ready)
        await eventually(lambda: not slot.last_report["asleep"])
    assert slot.vllm.calls == ["sleep 1 wait", "wake all"] * 2


async def test_sleep_aborts_requests_in_flight_after_the_drain(slot: SlotUnderTest) -> None:
    slot.spec = _sleeping_spec()
    await serving(slot)
    in_flight = asyncio.create_task(slot.ask(BASE, prompt=ENDLESS))
    await eventually(lambda: slot.vllm.seen[-1]["prompt"] == ENDLESS)
    await slot.set_status("Draining")
    await eventually(lambda: slot.last_report["draining"] and slot.last_report["inFlight"] == 1)
    assert not slot.vllm.calls
    await slot.set_status("Sleeping")
    await eventually(lambda: slot.last_report["asleep"])
    assert slot.vllm.calls == ["sleep 1 abort"]
    assert (await in_flight)[1]["choices"][0]["finish_reason"] == "abort"


async def test_wake_check_ends_a_vllm_that_answers_otherwise(sleeping_slot: SlotUnderTest) -> None:
    await serving(sleeping_slot)
    await asleep(sleeping_slot)
    sleeping_slot.vllm.sleep.forgets = True
    await sleeping_slot.set_status("Starting")
    await asyncio.wait_for(sleeping_slot.ended.wait(), 10)
    assert not await sleeping_slot.ready()
    assert (await sleeping_slot.ask(BASE))[0] == 503
    await sleeping_slot.restart_vllm()
    await eventually(sleeping_slot.ready)
    assert (await sleeping_slot.ask("tone"))[0] == 200


async def test_wake_that_fails_ends_vllm(sleeping_slot: SlotUnderTest) -> None:
    await serving(sleeping_slot)
    await asleep(sleeping_slot)
    sleeping_slot.vllm.sleep.trainers = 70 * GIB  # The operator would not say so: a stranger is on the GPU.
    await sleeping_slot.set_status("Starting")
    await asyncio.wait_for(sleeping_slot.ended.wait(), 10)
    assert not await sleeping_slot.ready()


async def test_wake_check_includes_adapters(slot: SlotUnderTest) -> None:
    slot.spec = _sleeping_spec()
    version = await serving(slot)
    await asleep(slot)
    slot.vllm.sleep.spoiled.add(version)
    await slot.set_status("Starting")
    await asyncio.wait_for(slot.ended.wait(), 10)
    assert not await slot.ready()


async def test_start_gate_holds_a_vllm_that_restarts_during_a_loan(sleeping_slot: SlotUnderTest) -> None:
    await serving(sleeping_slot)
    await asleep(sleeping_slot)
    await sleeping_slot.set_status("Lent")
    restarted = asyncio.create_task(sleeping_slot.restart_vllm())
    sleeping_slot.operator.reports.clear()
    await eventually(lambda: sleeping_slot.last_report.get("asleep"), 15)
    await asyncio.sleep(0.5)
    assert not restarted.done()
    assert (await sleeping_slot.ask(BASE))[0] == 503
    assert not await sleeping_slot.ready()
    assert (await pre_stop(sleeping_slot, drain_timeout=30)).endswith("0 in flight\n")
    await sleeping_slot.set_status("Starting")
    await asyncio.wait_for(restarted, 10)
    await eventually(sleeping_slot.ready)
    assert (await sleeping_slot.ask("tone"))[0] == 200


async def test_start_gate_holds_a_new_pod_of_a_lent_slot(slot: SlotUnderTest) -> None:
    slot.spec = _sleeping_spec()
    await slot.start()
    await slot.set_status("Lent", pod="the-one-before")
    await slot.start_agent()
    started = asyncio.create_task(slot.restart_vllm())
    await eventually(lambda: slot.last_report.get("asleep"))
    assert not started.done()
    await slot.set_status("Serving", pod="the-one-before")
    await asyncio.wait_for(started, 10)
    await eventually(slot.ready)


async def test_start_gate_opens_for_the_agent_only(slot: SlotUnderTest) -> None:
    slot.spec = _sleeping_spec()
    await slot.start()
    await slot.set_status("Lent")
    await slot.start_agent()
    started = asyncio.create_task(slot.restart_vllm())
    await eventually(lambda: slot.last_report.get("asleep"))
    for headers in ({}, {SECRET_HEADER: "wrong"}):
        for path in ("/sluice/start", STATE_PATH, "/v1/completions"):
            url = f"http://127.0.0.1:{slot.paths.serve_port}{path}"
            async with slot.http.post(url, headers=headers) as answer:
                assert answer.status == 503
    assert not started.done()
    _, silent = await asyncio.open_connection("127.0.0.1", slot.paths.serve_port)  # Nor does anybody keep it out.
    await slot.set_status("Starting")
    await asyncio.wait_for(started, 3)
    silent.close()


async def test_restarted_agent_continues_a_sleep(sleeping_slot: SlotUnderTest) -> None:
    await serving(sleeping_slot)
    await asleep(sleeping_slot)
    await sleeping_slot.set_status("Lent")
    sleeping_slot.vllm.sleep.trainers = 70 * GIB
    await sleeping_slot.stop_agent()
    sleeping_slot.operator.reports.clear()
    calls = [*sleeping_slot.vllm.calls]
    await sleeping_slot.start_agent()
    await eventually(lambda: sleeping_slot.last_report.get("asleep"))
    assert sleeping_slot.vllm.calls == calls
    sleeping_slot.vllm.sleep.trainers = 0
    await sleeping_slot.set_status("Starting")
    await eventually(sleeping_slot.ready)
    assert not sleeping_slot.ended.is_set()


async def test_wake_check_outlives_the_agent(slot: SlotUnderTest) -> None:
    slot.spec = _sleeping_spec()
    await serving(slot)
    await asleep(slot)
    await slot.stop_agent()
    slot.vllm.sleep.forgets = True
    await slot.set_status("Starting")
    await slot.start_agent()
    await asyncio.wait_for(slot.ended.wait(), 10)
    assert not await slot.ready()


async def test_wake_check_without_recorded_answers_ends_vllm(slot: SlotUnderTest) -> None:
    slot.spec = _sleeping_spec()
    await serving(slot)
    await asleep(slot)
    (slot.paths.scratch / "wake_check.json").unlink()
    await slot.set_status("Starting")
    await asyncio.wait_for(slot.ended.wait(), 10)
    assert not await slot.ready()


async def test_adapter_published_during_a_sleep_is_loaded_before_ready(slot: SlotUnderTest) -> None:
    """No answer from old weights to a request that began after the Adapter was Ready with the new ones."""
    slot.spec = _sleeping_spec()
    old = await serving(slot)
    await asleep(slot)
    slot.put_adapter("two", seed=2)
    await slot.publish("tone", "two")
    await slot.set_status("Starting")
    while not await slot.ready():
        status, _ = await slot.ask("tone")
        assert status == 503 or slot.vllm.seen[-1]["model"] != old
    assert (await slot.ask("tone"))[0] == 200
    assert slot.vllm.seen[-1]["model"] != old


async def test_slot_without_sleep_mode_reports_why(slot: SlotUnderTest) -> None:
    await slot.start_all()
    await slot.set_status("Serving")
    await eventually(slot.ready)
    await slot.set_status("Sleeping")
    await eventually(lambda: "This replica can't sleep" in slot.last_report["message"])
    assert not slot.last_report["asleep"]
    await slot.set_status("Serving")
    await eventually(slot.ready)


@pytest.mark.parametrize(
    ("state", "expected"),
    [("Sleeping", True), ("Lent", True), ("Reclaiming", True), ("Starting", False), ("Serving", False)]
    + [(state, None) for state in ("Draining", "Stopping", "Waiting", "Dreaming")],
)
def test_must_sleep(state: str, expected: bool | None) -> None:
    assert must_sleep({"status": {"slots": [{"index": 1, "state": state, "pod": "any"}]}}, 1) is expected
    assert must_sleep({"status": {"slots": [{"index": 0, "state": state}]}}, 1) is None
    assert must_sleep(None, 1) is None


@pytest.mark.parametrize(
    ("rule", "facts", "expected"),
    [
        ("an engine that never sleeps", {"can_sleep": False}, "AWAKE"),
        ("one that has to and can't", {"can_sleep": False, "must_sleep": True}, "AWAKE"),
        ("one that serves", {"must_sleep": False}, "AWAKE"),
        ("the status says nothing of one that serves", {}, "AWAKE"),
        ("its GPUs are promised", {"must_sleep": True}, "FALLING_ASLEEP, refuse"),
        (
            "requests are refused, vLLM is awake",
            {"must_sleep": True, "requests_refused": True},
            "FALLING_ASLEEP, refuse, Sleep",
        ),
        (
            "it sleeps and holds memory",
            {"must_sleep": True, "requests_refused": True, "vllm_sleeps": True, "memory_in_use": "7 GiB"},
            "FALLING_ASLEEP, refuse",
        ),
        (
            "it sleeps and has freed its memory",
            {"must_sleep": True, "requests_refused": True, "vllm_sleeps": True},
            "ASLEEP, reported, refuse",
        ),
        ("a restart while it must sleep", {"must_sleep": True, "held": True}, "HELD, reported, refuse"),
        ("a start without a status", {"held": True}, "HELD"),
        ("a start when the GPUs are its own", {"must_sleep": False, "held": True}, "HELD, Start"),
        (
            "the status says nothing of one that sleeps",
            {"requests_refused": True, "vllm_sleeps": True},
            "UNDECIDED, refuse",
        ),
        ("its GPUs are its own again", {"must_sleep": False, "requests_refused": True}, "WAKING, refuse, Wake"),
        ("it passed", {"must_sleep": False, "requests_refused": True, "passed_wake_check": True}, "WAKING"),
    ],
)
def test_sleep_state(rule: str, facts: dict[str, Any], expected: str) -> None:
    """The phase, whether `asleep` is reported, whether requests are refused from now on, and the next step."""
    state = SleepState(**{"can_sleep": True, **facts})
    step = state.next_step(in_flight=0)
    words = [
        state.phase.name,
        *(["reported"] if state.asleep else []),
        *(["refuse"] if state.must_refuse else []),
        *([type(step).__name__] if step else []),
    ]
    assert ", ".join(words) == expected


@pytest.mark.parametrize(
    ("rule", "used", "expected"),
    [
        ("a fifth of what vLLM took may stay in use", [7.2], ""),
        ("more may not", [7.3], "vLLM sleeps, but 7.3 of 40.0 GiB of GPU 0 are in use; at most 7.2 may be."),
        ("on any GPU", [1, 9], "vLLM sleeps, but 9.0 of 40.0 GiB of GPU 1 are in use; at most 7.2 may be."),
        (
            "without NVML nothing counts as free",
            None,
            "vLLM sleeps, but NVML does not say how much memory of its GPUs is in use.",
        ),
    ],
)
def test_memory_in_use(rule: str, used: list[float] | None, expected: str) -> None:
    memory = None if used is None else tuple(DeviceMemory(used=int(u * GIB), total=40 * GIB) for u in used)
    state = ObservedState(
        boot="1",
        desired=DesiredState(asleep=True),
        terminating=False,
        in_flight=0,
        in_flight_by_version={},
        quiet_seconds=0,
        draining_seconds=0,
        memory=memory,
    )
    assert memory_in_use(state, "0.90") == expected


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (Answer("hm", (-1.5, -2.0)), False),
        (Answer("hm", (-1.51, -2.0)), False),
        (Answer("hm", (-1.6, -2.0)), True),
        (Answer("hm", (-1.5,)), True),
        (Answer("?", (-1.5, -2.0)), True),
    ],
)
def test_wake_check_differs(after: Answer, expected: bool) -> None:
    assert differs(Answer("hm", (-1.5, -2.0)), after) is expected
