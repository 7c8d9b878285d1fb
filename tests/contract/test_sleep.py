"""What the fake vLLM claims of sleep mode, asserted against it and against real vLLM in its development mode.

On a CPU sleeping frees nothing, but scheduling stops, routes answer and weights are read again as they are on a GPU.
"""

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from sluice_server.control import DeviceMemory
from sluice_server.device_memory import device_memory
from tests.contract.test_vllm import SECRET, Server, faked, new_paths, started
from tests.unit.server.fake_vllm import BASE, ENDLESS

IN_DEVELOPMENT_MODE = """
from sluice_server import flags, launch
environment = flags._environment
flags._environment = lambda *given: {**environment(*given), "VLLM_SERVER_DEV_MODE": "1"}
launch.serve()
"""
"""vLLM refuses --enable-sleep-mode on a CPU, so a slot of a CPU never asks for this mode."""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(new_paths(tmp_path_factory.mktemp("real")), "-c", IN_DEVELOPMENT_MODE) as server:
        yield server


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with faked(new_paths(tmp_path_factory.mktemp("fake"))) as server:
        yield server


@pytest.fixture(params=["fake", "real"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    found: Server = request.getfixturevalue(request.param)
    yield found
    post(found, "/wake_up")
    found.put()


def post(server: Server, path: str, body: Any = None) -> httpx.Response:
    return server.http.post(path, json=body, headers=SECRET)


def sleeps(server: Server) -> bool:
    return bool(server.http.get("/is_sleeping", headers=SECRET).json()["is_sleeping"])


def is_computing(server: Server) -> bool:
    """Whether a request has reached the engine; one that has only reached the middleware is kept until it wakes."""
    return bool(re.search(r"^vllm:num_requests_running\{.*\} 1.0$", server.http.get("/metrics").text, re.MULTILINE))


def completion(server: Server, model: str = BASE) -> Any:
    return server.complete(model, headers=SECRET, logprobs=1).json()["choices"][0]


def test_sleep_answers_200_though_nothing_is_freed(server: Server) -> None:
    answer = post(server, "/sleep?level=1&mode=wait")
    assert (answer.status_code, answer.json()) == (200, {"status": "sleeping", "level": 1})
    assert sleeps(server)
    assert server.http.get("/health").status_code == 200
    assert [card["id"] for card in server.http.get("/v1/models").json()["data"]] == [BASE]
    woken = post(server, "/wake_up")
    assert (woken.status_code, woken.json()) == (200, {"status": "awake", "tags": None})
    assert not sleeps(server)
    assert post(server, "/wake_up").json() == {"status": "awake", "tags": None}  # of one that is awake


def test_sleep_defaults_to_level_1_and_abort(server: Server) -> None:
    answers: list[httpx.Response] = []
    asked: dict[str, Any] = {"prompt": ENDLESS, "max_tokens": 450, "ignore_eos": True}
    asking = threading.Thread(target=lambda: answers.append(server.complete(BASE, **asked)))
    asking.start()
    while not is_computing(server):
        pass
    assert post(server, "/sleep").json() == {"status": "sleeping", "level": 1}
    asking.join(30)
    assert answers[0].json()["choices"][0]["finish_reason"] == "abort"


def test_sleeping_vllm_keeps_requests_until_it_wakes(server: Server) -> None:
    before = completion(server)["text"]
    post(server, "/sleep?level=1&mode=wait")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/completions", json={"model": BASE, "prompt": "hello"}, timeout=1)
    server.put(asleep=True)
    assert server.complete(BASE).status_code == 503  # That is why the middleware refuses them.
    post(server, "/wake_up")
    server.put()
    assert completion(server)["text"] == before


def test_sleep_level_2_wakes_in_three_calls(server: Server) -> None:
    version = "tone--00000000000a"
    assert server.load(version, server.adapter(version)).status_code == 200
    before = [completion(server, model) for model in (BASE, version)]
    post(server, "/sleep?level=2&mode=wait")
    assert post(server, "/wake_up?tags=weights").json() == {"status": "sleeping", "tags": ["weights"]}
    assert post(server, "/collective_rpc", {"method": "reload_weights"}).json() == {"results": [None]}
    assert sleeps(server)
    assert post(server, "/wake_up?tags=weights").json()["status"] == "sleeping"  # once more changes nothing
    assert post(server, "/wake_up?tags=kv_cache").json() == {"status": "awake", "tags": ["kv_cache"]}
    assert server.unload(version).status_code == 200
    assert server.load(version, server.adapter(version)).status_code == 200
    after = [completion(server, model) for model in (BASE, version)]
    assert [choice["text"] for choice in after] == [choice["text"] for choice in before]
    assert [choice["logprobs"]["token_logprobs"] for choice in after] == [
        pytest.approx(choice["logprobs"]["token_logprobs"], abs=0.01) for choice in before
    ]
    server.unload(version)


@pytest.mark.parametrize("path", ["/sleep?level=3", "/sleep?mode=softly", "/collective_rpc"])
def test_sleep_with_invalid_parameters_is_refused(server: Server, path: str) -> None:
    assert post(server, path, {}).status_code == 400
    assert not sleeps(server)


@pytest.mark.parametrize("path", ["/sleep", "/wake_up", "/collective_rpc", "/is_sleeping"])
def test_sleep_routes_need_the_secret(server: Server, path: str) -> None:
    for method in ("GET", "POST"):
        assert server.http.request(method, path, json={"method": "reload_weights"}).status_code == 404
    assert not sleeps(server)


def test_device_memory_is_that_of_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.third_party import pynvml

    assert device_memory() is None  # no GPU here: nothing is known, and so nothing is free
    gpus = {0: SimpleNamespace(used=3, total=80), 1: SimpleNamespace(used=5, total=80)}
    for name, answer in {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: len(gpus),
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMemoryInfo": gpus.__getitem__,
    }.items():
        assert hasattr(pynvml, name)
        monkeypatch.setattr(pynvml, name, answer)
    assert device_memory() == (DeviceMemory(used=3, total=80), DeviceMemory(used=5, total=80))
    gpus.clear()
    assert device_memory() is None


def test_engine_process_is_forked(real: Server) -> None:
    """As launch.py has vLLM do on CPUs: one that is spawned imports everything a second time."""
    assert real.process is not None
    assert [is_forked(pid) for pid in beside(real.process.pid)] == [True]


def beside(leader: int) -> list[int]:
    """The other processes of a session, in a machine where processes of others come and go."""
    found = []
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        with suppress(ProcessLookupError):
            if pid != leader and os.getsid(pid) == leader:
                found.append(pid)
    return found


def is_forked(pid: int) -> bool:
    """Whether a process has begun no program since its parent forked it: PF_FORKNOEXEC, proc(5)."""
    flags = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[6]
    return bool(int(flags) & 0x40)


def test_signal_to_the_engine_does_not_reach_the_api_server(real: Server) -> None:
    """The module's last test: the server ends because its engine is gone, and not by a SIGTERM of its own."""
    assert real.process is not None
    (engine,) = beside(real.process.pid)
    os.kill(engine, signal.SIGTERM)
    real.process.wait(60)
    assert "API server: shutdown triggered" not in real.log.read_text()
