"""The agent against a fake vLLM behind the real middleware, and a fake API server, all over HTTP."""

import asyncio
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sluice_api.artifacts import adapter_digest
from sluice_api.meta import adapter_version
from tests.unit.server.conftest import SlotUnderTest, eventually
from tests.unit.server.fake_vllm import BASE


async def test_adapter_is_served_under_its_alias(slot: SlotUnderTest) -> None:
    await slot.start_all()
    folder = slot.put_adapter("tone")
    await slot.publish("tone", "tone")
    report = await slot.until("tone", "Loaded")
    version = adapter_version("tone", adapter_digest(folder))
    assert report == {
        "name": "tone",
        "generation": 1,
        "version": version,
        "state": "Loaded",
        "reason": "",
        "message": "",
    }
    status, answer = await slot.ask("tone")
    assert (status, answer["model"]) == (200, "tone")
    assert slot.vllm.seen[-1]["model"] == version
    assert [request["model"] for request in slot.vllm.seen if request.get("logprobs")] == [
        BASE,
        version,
        BASE,
    ]  # Checks.
    assert slot.vllm.adapters[version] == str(slot.paths.adapters / version)
    assert (slot.api.lists, slot.api.watches) == (2, 2)  # It came through the watch.


async def test_ready_when_every_adapter_is_loaded_or_failed(slot: SlotUnderTest) -> None:
    await slot.start()
    slot.put_adapter("tone")
    await slot.publish("tone", "tone")
    await slot.publish("lost", "nowhere")
    await slot.start_agent()
    assert not await slot.ready()
    await slot.start_vllm()
    await eventually(slot.ready)
    assert set((await slot.state())["desired"]["aliases"]) == {"tone"}
    report = await slot.until("lost", "Failed")
    assert report["reason"] == "AdapterNotFound"
    assert report["message"] == (
        "pvc://adapters/nowhere has no adapter_config.json. It is looked for again every few seconds."
    )
    status, answer = await slot.ask("lost")
    assert status == 503
    assert "AdapterNotFound: pvc://adapters/nowhere" in answer["error"]["message"]
    assert (await slot.ask(BASE))[0] == 200


async def test_ready_while_another_adapter_loads(slot: SlotUnderTest) -> None:
    await slot.start_all()
    await eventually(slot.ready)
    slot.vllm.hold.clear()
    slot.put_adapter("tone")
    await slot.publish("tone", "tone")
    await eventually(lambda: slot.vllm.adapters)
    assert await slot.ready()
    assert (await slot.ask("tone"))[0] == 503
    slot.vllm.hold.set()
    await slot.until("tone", "Loaded")


async def test_alias_moves_to_a_new_version_after_its_check(slot: SlotUnderTest) -> None:
    await slot.start_all()
    slot.put_adapter("one", seed=1)
    slot.put_adapter("two", seed=2)
    await slot.publish("tone", "one")
    old = (await slot.until("tone", "Loaded"))["version"]
    slot.vllm.hold.clear()
    await slot.publish("tone", "two")
    await eventually(lambda: len(slot.vllm.adapters) == 2)
    assert (await slot.state())["desired"]["aliases"] == {"tone": old}
    slot.vllm.hold.set()
    await eventually(lambda: slot.reported("tone").get("generation") == 2)
    new = (await slot.until("tone", "Loaded"))["version"]
    assert new != old
    assert (await slot.state())["desired"]["aliases"] == {"tone": new}
    await eventually(lambda: slot.vllm.adapters.keys() == {new})
    await eventually(lambda: [path.name for path in slot.paths.adapters.iterdir()] == [new])


async def test_unload_waits_for_requests_in_flight(slot: SlotUnderTest) -> None:
    await slot.start_all()
    slot.put_adapter("one")
    await slot.publish("tone", "one")
    version = (await slot.until("tone", "Loaded"))["version"]
    slot.vllm.hold.clear()
    in_flight = asyncio.create_task(slot.ask("tone"))
    await eventually(lambda: not slot.vllm.seen[-1].get("logprobs"))
    await slot.api.delete("adapters", "tone")
    await eventually(slot.state_has_no_alias)
    await asyncio.sleep(0.1)
    assert slot.vllm.adapters
    assert (await slot.state())["inFlightByVersion"] == {version: 1}
    assert (await slot.ask("tone"))[0] == 404
    slot.vllm.hold.set()
    assert (await in_flight)[1]["model"] == "tone"
    await eventually(lambda: not slot.vllm.adapters)
    await eventually(lambda: not [*slot.paths.adapters.iterdir()])


async def test_alias_stays_on_the_old_version_if_the_new_one_is_rejected(slot: SlotUnderTest) -> None:
    await slot.start_all()
    slot.put_adapter("one")
    slot.put_adapter("wide", r=64)
    await slot.publish("tone", "one")
    old = (await slot.until("tone", "Loaded"))["version"]
    await slot.publish("tone", "wide")
    report = await slot.until("tone", "Failed")
    assert (report["generation"], report["reason"]) == (2, "RankTooLarge")
    assert report["message"].endswith(f"{old} still answers.")
    assert (await slot.ask("tone"))[0] == 200
    await slot.publish("tone", "one")
    assert (await slot.until("tone", "Loaded"))["version"] == old
    assert slot.vllm.calls == [f"load {old}"]


async def test_adapter_with_nan_is_rejected_before_vllm_loads_it(slot: SlotUnderTest) -> None:
    await slot.start_all()
    path = slot.put_adapter("nan") / "adapter_model.safetensors"
    weights = load_file(path)
    weights[min(weights)][0, 0] = np.nan
    save_file(weights, path)
    await slot.publish("tone", "nan")
    report = await slot.until("tone", "Failed")
    assert report["reason"] == "AdapterInvalid"
    assert "has NaN or infinite numbers" in report["message"]
    assert slot.vllm.calls == []


async def test_not_ready_while_the_base_model_fails_its_canary(slot: SlotUnderTest) -> None:
    await slot.start()
    await slot.start_agent()
    slot.vllm.answers_nan = True
    await slot.start_vllm()
    await eventually(lambda: slot.operator.reports and "The base model" in slot.operator.reports[-1]["message"])
    assert not await slot.ready()
    slot.vllm.answers_nan = False
    await eventually(slot.ready)


async def test_adapter_that_fails_its_canary_is_unloaded(slot: SlotUnderTest) -> None:
    await slot.start_all()
    await eventually(slot.ready)
    slot.vllm.answers_nan = True
    slot.put_adapter("one")
    await slot.publish("tone", "one")
    report = await slot.until("tone", "Failed")
    assert report["reason"] == "CanaryFailed"
    await eventually(lambda: not slot.vllm.adapters)
    assert (await slot.ask("tone"))[0] == 503


@pytest.mark.parametrize(
    ("passed_over", "message"),
    [
        (
            ("layers.0.q_proj", "layers.0.v_proj", "layers.1.q_proj", "layers.1.v_proj"),
            "vLLM passed over 4 of its 6 layers (layers.0.q_proj, layers.0.v_proj, layers.1.q_proj, ...): it has none",
        ),
        ((), "vLLM uses all its 6 layers, and they change nothing. Train longer."),
    ],
)
async def test_adapter_without_effect_is_rejected(
    slot: SlotUnderTest, passed_over: tuple[str, ...], message: str
) -> None:
    await slot.start_all()
    slot.vllm.passes_over = passed_over
    slot.put_adapter("one")
    await slot.publish("tone", "one")
    report = await slot.until("tone", "Failed")
    assert report["reason"] == "AdapterWithoutEffect"
    assert f"{report['version']} answers with the numbers of the base model. {message}" in report["message"]
    assert (await slot.ask("tone"))[0] == 503


async def test_not_ready_at_once_when_vllm_is_gone(slot: SlotUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent has patience with a vLLM that is late, and none with one that is gone."""
    monkeypatch.setattr("sluice_server.agent.slot._PATIENCE_SECONDS", 3600)
    await slot.start_all()
    await eventually(slot.ready)
    await eventually(lambda: slot.last_report.get("serving"))
    await slot.stop_vllm()
    assert not await slot.ready()  # at once: the kubelet takes its container for ready as soon as it runs again
    await eventually(lambda: not slot.last_report["serving"])
    assert slot.last_report["message"].startswith("vLLM does not answer")
    await slot.restart_vllm()
    await eventually(slot.ready)


async def test_max_adapters_does_not_count_rejected_adapters(
    slot: SlotUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sluice_server.agent.plan._RETRY_LATER", 0.1)
    await slot.start_all()
    for name, config in (("a", {"use_dora": True}), ("b", {}), ("c", {}), ("d", {})):
        slot.put_adapter(name, seed=ord(name), **config)
        await slot.publish(name, name)
    await slot.until("c", "Loaded")
    assert [slot.reported(name)["reason"] for name in "abcd"] == ["AdapterInvalid", "", "", "TooManyAdapters"]
    slot.put_adapter("a")  # mended, when its place is another's
    await eventually(lambda: slot.reported("a")["reason"] == "TooManyAdapters")
    assert await slot.ready()
    await slot.api.delete("adapters", "b")
    await slot.until("a", "Loaded")
    assert [call.split("--")[0] for call in slot.vllm.calls] == ["load b", "load c", "unload b", "load a"]


async def test_load_failed_has_the_message_of_vllm(slot: SlotUnderTest) -> None:
    await slot.start_all()
    slot.vllm.refuses_to_load = "no such kernel"
    slot.put_adapter("one")
    await slot.publish("tone", "one")
    report = await slot.until("tone", "Failed")
    assert report["reason"] == "LoadFailed"
    assert report["message"].endswith("no such kernel")


async def test_max_adapters_admits_the_oldest(slot: SlotUnderTest) -> None:
    await slot.start_all()
    for name in ("a", "b", "c"):
        slot.put_adapter(name, seed=ord(name))
        await slot.publish(name, name)
    report = await slot.until("c", "Failed")
    assert report["reason"] == "TooManyAdapters"
    assert report["message"] == "lora.maxAdapters is 2, and a, b came first. Delete one, or raise it."
    await slot.until("a", "Loaded")
    await slot.api.delete("adapters", "a")
    await slot.until("c", "Loaded")


async def test_adapters_of_other_engines_and_unreadable_ones_are_ignored(slot: SlotUnderTest) -> None:
    await slot.start_all()
    slot.put_adapter("one")
    await slot.api.apply("adapters", "poison", spec={"engine": BASE})
    await slot.publish("two.words", "one")  # Kubernetes allows a dot, a report does not.
    await slot.api.apply("adapters", "theirs", spec={"engine": "other", "source": {"uri": "pvc://adapters/one"}})
    await slot.publish("tone", "one")
    await slot.until("tone", "Loaded")
    assert [adapter["name"] for adapter in slot.operator.reports[-1]["adapters"]] == ["tone"]


async def test_restarted_vllm_is_loaded_again(slot: SlotUnderTest) -> None:
    await slot.start_all()
    slot.put_adapter("one")
    await slot.publish("tone", "one")
    version = (await slot.until("tone", "Loaded"))["version"]
    shutil.rmtree(slot.paths.root / "volumes/adapters/one")  # The pod's own copy is what counts.
    await slot.restart_vllm()
    await eventually(lambda: slot.vllm.adapters.keys() == {version})
    await eventually(slot.ready)
    assert [request["model"] for request in slot.vllm.seen] == [BASE, version, BASE]  # Checked again, both.
    assert (await slot.ask("tone"))[0] == 200


async def test_adapter_that_ends_vllm_is_not_loaded_for_ever(slot: SlotUnderTest) -> None:
    await slot.start_all()
    slot.put_adapter("bad", seed=1)
    slot.put_adapter("good", seed=2)
    await slot.publish("good", "good")
    await slot.until("good", "Loaded")
    slot.vllm.dies_of = "bad"
    await slot.publish("bad", "bad")
    for _ in range(2):
        await eventually(lambda: not slot.vllm.healthy)
        await slot.restart_vllm()
        slot.vllm.dies_of = "bad"
    await slot.until("good", "Loaded")
    report = await slot.until("bad", "Failed")
    assert (report["reason"], report["message"]) == (
        "LoadFailed",
        "pvc://adapters/bad: vLLM or its agent ended 2 times while it was fetched, loaded or checked, so it is not "
        "tried again in this pod. Correct it and change the Adapter's source, or delete the Adapter.",
    )
    await eventually(slot.ready)
    assert [call for call in slot.vllm.calls if call.startswith("load bad")] == []
    await slot.stop_agent()
    await slot.start_agent()  # another agent knows it too
    await slot.until("bad", "Failed")
    assert [call for call in slot.vllm.calls if call.startswith("load bad")] == []
    slot.vllm.dies_of = None
    await slot.publish("bad", "good")  # another generation
    await slot.until("bad", "Loaded")


async def test_restarted_agent_loads_nothing_again(slot: SlotUnderTest) -> None:
    await slot.start_all()
    slot.put_adapter("one")
    await slot.publish("tone", "one")
    version = (await slot.until("tone", "Loaded"))["version"]
    await slot.stop_agent()
    last = slot.operator.reports[-1]["sequence"]
    slot.operator.reports.clear()
    await slot.start_agent()
    await slot.until("tone", "Loaded")
    await eventually(slot.ready)
    assert slot.vllm.calls == [f"load {version}"]
    assert min(report["sequence"] for report in slot.operator.reports) > last


async def test_informer_lists_after_a_lost_watch(slot: SlotUnderTest) -> None:
    await slot.start_all()
    slot.put_adapter("one")
    await slot.publish("tone", "one")
    await slot.until("tone", "Loaded")
    slot.api.broken = True
    await slot.api.cut_watches(compact=False)
    await asyncio.sleep(0.3)
    await slot.api.delete("adapters", "tone")
    await slot.api.cut_watches(compact=True)
    slot.api.broken = False
    await eventually(lambda: not slot.vllm.adapters)
    assert slot.api.lists > 2


async def test_informer_lists_after_an_error_event(slot: SlotUnderTest) -> None:
    await slot.start_all()
    slot.put_adapter("one")
    await slot.publish("tone", "one")
    await slot.until("tone", "Loaded")
    del slot.api.objects["adapters", "tone"]  # An event that never comes.
    lists = slot.api.lists
    await slot.api.fail_watches()
    await eventually(lambda: not slot.vllm.adapters)
    assert slot.api.lists > lists


async def test_metrics_agree_with_the_report(slot: SlotUnderTest) -> None:
    await slot.start_all()
    slot.put_adapter("one")
    await slot.publish("tone", "one")
    await slot.publish("lost", "nowhere")
    await slot.until("tone", "Loaded")
    await slot.until("lost", "Failed")
    await eventually(slot.ready)
    lines = await slot.metrics()
    for series in (
        'sluice_agent_adapters{state="Loaded"} 1.0',
        'sluice_agent_adapters{state="Failed"} 1.0',
        "sluice_agent_requests_in_flight 0.0",
        "sluice_agent_serving 1.0",
        "sluice_agent_draining 0.0",
    ):
        assert series in lines
