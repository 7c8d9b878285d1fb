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
from tests.unit.server.test_drain import stop_hook


@pytest.fixture(params=[1, 2], ids=["level 1", "level 2"])
def sleeper(slot: SlotUnderTest, request: pytest.FixtureRequest) -> SlotUnderTest:
    """A slot that sleeps while it is lent."""
    terms = Preemption(policy=LendingPolicy.SLEEP, sleep_level=request.param)
    slot.spec = SPEC.model_copy(
        update={"device": "cuda", "spec": SPEC.spec.model_copy(update={"preemption": terms})},
    )
    return slot


async def serving(slot: SlotUnderTest) -> str:
    """The slot serves, with an adapter; its version."""
    await slot.start_all()
    await slot.say("Serving")
    slot.put_adapter("tone")
    await slot.publish("tone", "tone")
    version: str = (await slot.until("tone", "Loaded"))["version"]
    await eventually(slot.ready)
    slot.vllm.calls.clear()
    return version


async def asleep(slot: SlotUnderTest) -> None:
    await slot.say("Draining")
    await slot.say("Sleeping")
    await eventually(lambda: slot.last_report["asleep"])


async def test_a_lent_slot_sleeps_and_wakes_as_it_was(sleeper: SlotUnderTest) -> None:
    version, level = await serving(sleeper), sleeper.spec.sleep_level
    await sleeper.say("Draining")
    await eventually(lambda: sleeper.last_report["draining"])
    assert not sleeper.vllm.calls  # A drain alone puts nothing to sleep.
    await sleeper.say("Sleeping")
    await eventually(lambda: sleeper.last_report["asleep"])
    assert sleeper.vllm.calls == [f"sleep {level} wait"]
    assert not await sleeper.ready()
    for model in (BASE, "tone"):
        assert (await sleeper.ask(model))[0] == 503
    await sleeper.say("Lent")
    sleeper.vllm.sleep.trainers = 70 * GIB
    await asyncio.sleep(0.5)
    assert sleeper.last_report["asleep"]  # What NVML counts is the trainer's.
    sleeper.vllm.sleep.trainers = 0
    sleeper.vllm.calls.clear()
    await sleeper.say("Starting")
    await eventually(sleeper.ready)
    woken = {
        1: ["wake all"],
        2: ["wake weights", "reload_weights", "wake kv_cache", f"unload {version}", f"load {version}"],
    }
    assert sleeper.vllm.calls == woken[level]
    assert [(await sleeper.ask(model))[0] for model in (BASE, "tone")] == [200, 200]
    assert not sleeper.ended.is_set()
    await eventually(lambda: not sleeper.last_report["asleep"])


async def test_an_autoscaler_is_not_told_that_a_sleeping_replica_has_nothing_to_do(slot: SlotUnderTest) -> None:
    series = "sluice_agent_requests_in_flight 0.0"
    slot.spec = _sleeping_spec()
    await serving(slot)
    await eventually(lambda: slot.last_report["serving"])
    assert series in await slot.metrics()
    await asleep(slot)
    assert series not in await slot.metrics()
    await slot.say("Starting")
    await eventually(slot.ready)
    await eventually(lambda: slot.last_report["serving"])
    assert series in await slot.metrics()


@pytest.mark.parametrize("state", ["Draining", "Reclaiming", "Stopping", "Lent", "Dreaming", ""])
async def test_nothing_but_a_word_wakes_it(slot: SlotUnderTest, state: str) -> None:
    slot.spec = _sleeping_spec()
    await serving(slot)
    await asleep(slot)
    slot.vllm.calls.clear()
    if state:
        await slot.say(state)
    else:
        await slot.api.apply("inferenceengines", BASE, status={})
    await asyncio.sleep(0.5)
    assert not slot.vllm.calls
    assert not await slot.ready()
    await slot.say("Starting")
    await eventually(slot.ready)


def _sleeping_spec() -> Any:
    terms = Preemption(policy=LendingPolicy.SLEEP)
    return SPEC.model_copy(update={"device": "cuda", "spec": SPEC.spec.model_copy(update={"preemption": terms})})


async def test_memory_that_is_not_freed_is_no_sleep(sleeper: SlotUnderTest) -> None:
    """200 from /sleep proves nothing (vllm#47654)."""
    await serving(sleeper)
    sleeper.vllm.sleep.leaves = 16 * GIB
    await sleeper.say("Sleeping")
    why = "vLLM sleeps, but 16.0 of 80.0 GiB of GPU 0 are in use; at most 14.4 may be."
    await eventually(lambda: sleeper.last_report["message"] == why)
    assert not any(report["asleep"] for report in sleeper.operator.reports)
    await sleeper.say("Starting")  # The operator has given the claim up.
    await eventually(sleeper.ready)
    assert not sleeper.ended.is_set()
    sleeper.vllm.sleep.leaves = 14 * GIB
    await asleep(sleeper)


async def test_requests_whose_time_is_over_do_not_keep_it_awake(slot: SlotUnderTest) -> None:
    slot.spec = _sleeping_spec()
    await serving(slot)
    in_flight = asyncio.create_task(slot.ask(BASE, prompt=ENDLESS))
    await eventually(lambda: slot.vllm.seen[-1]["prompt"] == ENDLESS)
    await slot.say("Draining")
    await eventually(lambda: slot.last_report["draining"] and slot.last_report["inFlight"] == 1)
    assert not slot.vllm.calls
    await slot.say("Sleeping")
    await eventually(lambda: slot.last_report["asleep"])
    assert slot.vllm.calls == ["sleep 1 abort"]
    assert (await in_flight)[1]["choices"][0]["finish_reason"] == "abort"


async def test_one_that_wakes_badly_is_ended_and_starts_anew(sleeper: SlotUnderTest) -> None:
    await serving(sleeper)
    await asleep(sleeper)
    sleeper.vllm.sleep.forgets = True
    await sleeper.say("Starting")
    await asyncio.wait_for(sleeper.ended.wait(), 10)
    assert not await sleeper.ready()
    assert (await sleeper.ask(BASE))[0] == 503
    await sleeper.restart_vllm()
    await eventually(sleeper.ready)
    assert (await sleeper.ask("tone"))[0] == 200


async def test_one_that_can_not_wake_is_ended(sleeper: SlotUnderTest) -> None:
    await serving(sleeper)
    await asleep(sleeper)
    sleeper.vllm.sleep.trainers = 70 * GIB  # The operator would not say so: a stranger is on the GPU.
    await sleeper.say("Starting")
    await asyncio.wait_for(sleeper.ended.wait(), 10)
    assert not await sleeper.ready()


async def test_an_adapter_that_answers_otherwise_is_noticed_too(slot: SlotUnderTest) -> None:
    slot.spec = _sleeping_spec()
    version = await serving(slot)
    await asleep(slot)
    slot.vllm.sleep.spoiled.add(version)
    await slot.say("Starting")
    await asyncio.wait_for(slot.ended.wait(), 10)
    assert not await slot.ready()


async def test_a_vllm_that_restarts_during_a_loan_waits_for_its_end(sleeper: SlotUnderTest) -> None:
    await serving(sleeper)
    await asleep(sleeper)
    await sleeper.say("Lent")
    restarted = asyncio.create_task(sleeper.restart_vllm())
    sleeper.operator.reports.clear()
    await eventually(lambda: sleeper.last_report.get("asleep"), 15)
    await asyncio.sleep(0.5)
    assert not restarted.done()
    assert (await sleeper.ask(BASE))[0] == 503
    assert not await sleeper.ready()
    assert (await stop_hook(sleeper, drain_timeout=30)).endswith("0 in flight\n")
    await sleeper.say("Starting")
    await asyncio.wait_for(restarted, 10)
    await eventually(sleeper.ready)
    assert (await sleeper.ask("tone"))[0] == 200


async def test_a_new_pod_of_a_lent_slot_waits_too(slot: SlotUnderTest) -> None:
    slot.spec = _sleeping_spec()
    await slot.start()
    await slot.say("Lent", pod="the-one-before")
    await slot.start_agent()
    started = asyncio.create_task(slot.restart_vllm())
    await eventually(lambda: slot.last_report.get("asleep"))
    assert not started.done()
    await slot.say("Serving", pod="the-one-before")
    await asyncio.wait_for(started, 10)
    await eventually(slot.ready)


async def test_nobody_but_the_agent_lets_vllm_start(slot: SlotUnderTest) -> None:
    slot.spec = _sleeping_spec()
    await slot.start()
    await slot.say("Lent")
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
    await slot.say("Starting")
    await asyncio.wait_for(started, 3)
    silent.close()


async def test_an_agent_that_restarts_during_a_loan_goes_on(sleeper: SlotUnderTest) -> None:
    await serving(sleeper)
    await asleep(sleeper)
    await sleeper.say("Lent")
    sleeper.vllm.sleep.trainers = 70 * GIB
    await sleeper.stop_agent()
    sleeper.operator.reports.clear()
    calls = [*sleeper.vllm.calls]
    await sleeper.start_agent()
    await eventually(lambda: sleeper.last_report.get("asleep"))
    assert sleeper.vllm.calls == calls
    sleeper.vllm.sleep.trainers = 0
    await sleeper.say("Starting")
    await eventually(sleeper.ready)
    assert not sleeper.ended.is_set()


async def test_what_it_answered_before_is_not_forgotten_with_the_agent(slot: SlotUnderTest) -> None:
    slot.spec = _sleeping_spec()
    await serving(slot)
    await asleep(slot)
    await slot.stop_agent()
    slot.vllm.sleep.forgets = True
    await slot.say("Starting")
    await slot.start_agent()
    await asyncio.wait_for(slot.ended.wait(), 10)
    assert not await slot.ready()


async def test_one_that_sleeps_and_nobody_knows_what_it_answered_is_ended(slot: SlotUnderTest) -> None:
    slot.spec = _sleeping_spec()
    await serving(slot)
    await asleep(slot)
    (slot.paths.scratch / "wake_check.json").unlink()
    await slot.say("Starting")
    await asyncio.wait_for(slot.ended.wait(), 10)
    assert not await slot.ready()


async def test_what_was_published_meanwhile_is_there_before_it_is_ready(slot: SlotUnderTest) -> None:
    """No answer from old weights to a request that began after the Adapter was Ready with the new ones."""
    slot.spec = _sleeping_spec()
    old = await serving(slot)
    await asleep(slot)
    slot.put_adapter("two", seed=2)
    await slot.publish("tone", "two")
    await slot.say("Starting")
    while not await slot.ready():
        status, _ = await slot.ask("tone")
        assert status == 503 or slot.vllm.seen[-1]["model"] != old
    assert (await slot.ask("tone"))[0] == 200
    assert slot.vllm.seen[-1]["model"] != old


async def test_one_that_was_started_without_sleep_mode_says_so(slot: SlotUnderTest) -> None:
    await slot.start_all()
    await slot.say("Serving")
    await eventually(slot.ready)
    await slot.say("Sleeping")
    await eventually(lambda: "This replica can't sleep" in slot.last_report["message"])
    assert not slot.last_report["asleep"]
    await slot.say("Serving")
    await eventually(slot.ready)


@pytest.mark.parametrize(
    ("state", "expected"),
    [("Sleeping", True), ("Lent", True), ("Reclaiming", True), ("Starting", False), ("Serving", False)]
    + [(state, None) for state in ("Draining", "Stopping", "Waiting", "Dreaming")],
)
def test_whose_the_gpus_are(state: str, expected: bool | None) -> None:
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
        ("requests are refused, vLLM is awake", {"must_sleep": True, "refused": True}, "FALLING_ASLEEP, refuse, Sleep"),
        (
            "it sleeps and holds memory",
            {"must_sleep": True, "refused": True, "vllm_sleeps": True, "memory_in_use": "16 GiB"},
            "FALLING_ASLEEP, refuse",
        ),
        (
            "it sleeps and has freed its memory",
            {"must_sleep": True, "refused": True, "vllm_sleeps": True},
            "ASLEEP, reported, refuse",
        ),
        ("a restart while it must sleep", {"must_sleep": True, "held": True}, "HELD, reported, refuse"),
        ("a start without a status", {"held": True}, "HELD"),
        ("a start when the GPUs are its own", {"must_sleep": False, "held": True}, "HELD, Start"),
        ("the status says nothing of one that sleeps", {"refused": True, "vllm_sleeps": True}, "UNDECIDED, refuse"),
        ("its GPUs are its own again", {"must_sleep": False, "refused": True}, "WAKING, refuse, Wake"),
        ("it passed", {"must_sleep": False, "refused": True, "passed_wake_check": True}, "WAKING"),
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
        ("a fifth of what vLLM took may stay", [7.2], ""),
        ("no more", [7.3], "vLLM sleeps, but 7.3 of 40.0 GiB of GPU 0 are in use; at most 7.2 may be."),
        ("on any GPU", [1, 9], "vLLM sleeps, but 9.0 of 40.0 GiB of GPU 1 are in use; at most 7.2 may be."),
        (
            "who can't count proves nothing",
            None,
            "vLLM sleeps, but NVML does not say how much memory of its GPUs is in use.",
        ),
    ],
)
def test_freed_memory(rule: str, used: list[float] | None, expected: str) -> None:
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
def test_what_counts_as_another_answer(after: Answer, expected: bool) -> None:
    assert differs(Answer("hm", (-1.5, -2.0)), after) is expected
