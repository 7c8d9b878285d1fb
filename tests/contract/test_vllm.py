"""What the fake vLLM of the unit tests claims, asserted against it and against real vLLM.

One vLLM on CPUs serves the whole module. Times with two cores: about 30 s to start, 20 s for the rest.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import uvicorn
from safetensors.numpy import load_file, save_file

from dev.cluster.ports import free_port
from dev.models import models
from dev.models import place as place_model
from sluice_api import pods
from sluice_api.inferenceengine import EngineLora, InferenceEngineSpec, ServedModel, Serving
from sluice_api.reasons import Reason
from sluice_api.slots import SlotSpec
from sluice_server.agent.rejected import AdapterRejected
from sluice_server.agent.tensors import not_finite, tensors
from sluice_server.agent.vllm_client import VLLMClient
from sluice_server.middleware import MODELS, PROBES, SERVING, Middleware
from sluice_server.model_infos import IN_IMAGE
from sluice_server.paths import ROOT_ENV, SECRET_HEADER, SERVE_PORT_ENV, STATE_PATH, SlotPaths
from tests.contract.models import log_probability, train_whole
from tests.unit.server.conftest import SlotUnderTest, eventually
from tests.unit.server.fake_vllm import BASE, FakeVLLM
from tests.unit.server.folders import make_adapter

SECRET = {SECRET_HEADER: "only-for-the-agent"}
START_SECONDS = 240


@dataclass
class Server:
    """A server that speaks vLLM's contract, behind the middleware."""

    name: str
    paths: SlotPaths
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.url = f"http://127.0.0.1:{self.paths.serve_port}"
        self.http = httpx.Client(base_url=self.url, timeout=60)

    @property
    def model(self) -> Path:
        return self.paths.root / "volumes/models/tiny"

    @property
    def log(self) -> Path:
        return self.paths.root / "vllm.log"

    def adapter(self, version: str, seed: int = 1) -> Path:
        return make_adapter(self.paths.adapters / version, self.model, seed)

    def load(self, version: str, folder: Path) -> httpx.Response:
        return self.http.post(
            "/v1/load_lora_adapter", json={"lora_name": version, "lora_path": str(folder)}, headers=SECRET
        )

    def unload(self, version: str) -> httpx.Response:
        return self.http.post("/v1/unload_lora_adapter", json={"lora_name": version}, headers=SECRET)

    def put(self, **desired: Any) -> None:
        assert self.http.put(STATE_PATH, json=desired, headers=SECRET).status_code == 200

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(STATE_PATH, headers=SECRET).json()
        return found

    def complete(self, model: str, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        body = {"model": model, "prompt": "hello", "max_tokens": 4, "temperature": 0, **fields}
        return self.http.post("/v1/completions", json=body, headers=headers)


def new_paths(root: Path) -> SlotPaths:
    paths = SlotPaths(root, free_port(), free_port())
    paths.adapters.mkdir()
    paths.scratch.mkdir()
    paths.secret_file.parent.mkdir(parents=True)
    paths.secret_file.write_text(SECRET[SECRET_HEADER])
    models()
    place_model("tiny", root / "volumes/models")
    return paths


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with faked(new_paths(tmp_path_factory.mktemp("fake"))) as server:
        yield server


@contextmanager
def faked(paths: SlotPaths) -> Iterator[Server]:
    """The fake vLLM behind our middleware, once it listens."""
    app = Middleware(FakeVLLM(), SECRET[SECRET_HEADER], BASE)
    config = uvicorn.Config(app, host="127.0.0.1", port=paths.serve_port, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield Server("fake", paths)
    server.should_exit = True
    thread.join(5)


SPEC = InferenceEngineSpec(
    model=ServedModel(uri="pvc://models/tiny"),
    lora=EngineLora(max_adapters=2, max_rank=7, volume_claims=("adapters",)),
    serving=Serving(max_model_length=512, max_concurrent_requests=4, dtype="float32"),
)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Its model is one that a job of method Full has made."""
    paths = new_paths(tmp_path_factory.mktemp("real"))
    train_whole(paths.root / "volumes", "tiny")
    with started(paths, "-m", "sluice_server", "vllm") as server:
        yield server


@contextmanager
def started(paths: SlotPaths, *command: str, spec: InferenceEngineSpec = SPEC) -> Iterator[Server]:
    """Real vLLM behind the middleware, which a command of Python's starts."""
    slot = SlotSpec(namespace="demo", engine=BASE, index=1, device="cpu", spec=spec)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        ROOT_ENV: str(paths.root),
        SERVE_PORT_ENV: str(paths.serve_port),
        pods.SLOT_ENV: slot.to_json(),
    }
    server = Server("real", paths)
    with server.log.open("wb") as log:
        server.process = subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_for_health(server)
        yield server
    finally:
        with suppress(ProcessLookupError):  # as after the last test
            os.killpg(server.process.pid, signal.SIGKILL)  # its engine is a process of its own, and would live on
        server.process.wait()


def _wait_for_health(server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert server.process is not None
        assert server.process.poll() is None, server.log.read_text()[-4000:]
        try:
            if server.http.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.25)
    pytest.fail(server.log.read_text()[-4000:])


@pytest.fixture(params=["fake", "real"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    found: Server = request.getfixturevalue(request.param)
    yield found
    found.put()
    for card in found.http.get("/v1/models", headers=SECRET).json()["data"]:
        if card["id"] != BASE:
            found.unload(card["id"])


def test_full_model_answers_as_it_was_exported(real: Server) -> None:
    """With the numbers of transformers, which are not those of the model that it was trained from."""
    answer = real.complete(BASE, logprobs=1, max_tokens=1).json()["choices"][0]["logprobs"]
    here = log_probability(real.model, "hello", answer["tokens"][0])
    assert answer["token_logprobs"][0] == pytest.approx(here, abs=1e-3)
    untrained = log_probability(real.paths.root / "volumes/models/untrained", "hello", answer["tokens"][0])
    assert abs(here - untrained) > 0.01


def test_unknown_field_is_refused(real: Server) -> None:
    """vLLM itself answers 200 and ignores it."""
    assert real.complete(BASE, headers=SECRET, temprature=0).status_code == 200
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize"):
        answer = real.http.post(path, json={"model": BASE, "temprature": 0})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == "vLLM has no field temprature here, and would ignore it."
    known = {"model": BASE, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1, "user": "me"}
    assert real.http.post("/v1/chat/completions", json=known).status_code == 200


async def test_adapter_without_effect_is_rejected(real: Server) -> None:
    """vLLM takes names that end as its own do, and looks for them where they are not (vllm#41754)."""
    async with VLLMClient(real.paths.serve_port, SECRET[SECRET_HEADER], BASE, embeds=False) as vllm:
        good, bad = "tone--000000000006", "tone--000000000007"
        await vllm.load(good, real.adapter(good))
        await vllm.check_effect(good)
        folder = real.adapter(bad)
        path = folder / "adapter_model.safetensors"
        save_file({name.replace(".layers.", ".text.layers."): w for name, w in load_file(path).items()}, path)
        await vllm.load(bad, folder)
        with pytest.raises(
            AdapterRejected, match=r"vLLM passed over (\d+) of its \1 layers \(\S+\.text\.layers\.0\."
        ) as caught:
            await vllm.check_effect(bad)
        assert caught.value.reason == Reason.ADAPTER_WITHOUT_EFFECT
        await vllm.unload(good)
        await vllm.unload(bad)


def test_adapter_of_any_rank_up_to_max_rank_is_served(real: Server) -> None:
    """--max-lora-rank is one of vLLM's own ranks, those of adapters are not."""
    version = "tone--000000000008"
    folder = make_adapter(real.paths.adapters / version, real.model, r=7)
    assert real.load(version, folder).status_code == 200
    assert real.complete(version, headers=SECRET, logprobs=1).status_code == 200
    real.unload(version)


def test_models_are_listed_with_parent_and_root(server: Server) -> None:
    folder = server.adapter("tone--000000000001")
    assert server.load("tone--000000000001", folder).status_code == 200
    base, adapter = server.http.get("/v1/models", headers=SECRET).json()["data"]
    assert (base["id"], base["parent"]) == (BASE, None)
    assert (adapter["id"], adapter["parent"], adapter["root"]) == ("tone--000000000001", BASE, str(folder))


def test_model_infos_of_the_image_are_used(real: Server) -> None:
    """vLLM writes the file again if it has to inspect the model's class itself."""
    in_image = sorted((IN_IMAGE / "modelinfos").glob("*Llama*.json"))
    assert in_image
    for file in in_image:
        in_pod = real.paths.scratch / "cache/vllm/modelinfos" / file.name
        assert in_pod.stat().st_mtime == file.stat().st_mtime


def test_load_and_unload_answer_as_the_agent_expects(server: Server) -> None:
    folder = server.adapter("tone--000000000002")
    assert server.load("tone--000000000002", folder).text.startswith("Success: LoRA adapter 'tone--000000000002' added")
    again = server.load("tone--000000000002", folder)
    assert again.status_code == 400
    assert "has already been loaded" in again.json()["error"]["message"]
    missing = server.load("gone--000000000002", server.paths.root / "nowhere")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "NotFoundError")
    assert server.unload("tone--000000000002").status_code == 200
    assert server.unload("tone--000000000002").status_code == 404


def test_unknown_model_is_refused_alike_by_vllm_and_middleware(server: Server) -> None:
    theirs, ours = server.complete("nobody", headers=SECRET), server.complete("nobody")
    assert theirs.status_code == ours.status_code == 404
    assert theirs.json() == ours.json()
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.NotFoundError, match="The model `nobody` does not exist"):
        client.completions.create(model="nobody", prompt="hello")


def test_alias_is_all_that_a_client_sees(server: Server) -> None:
    version = "tone--000000000003"
    server.load(version, server.adapter(version))
    server.put(aliases={"tone": version}, unavailable={"bad": {"reason": "RankTooLarge", "message": "rank 64"}})
    assert [card["id"] for card in server.http.get("/v1/models").json()["data"]] == [BASE, "tone"]
    assert server.complete("tone").json()["model"] == "tone"
    assert server.complete(version).status_code == 404
    assert server.complete("bad").status_code == 503
    too_long = server.complete("tone", max_tokens=100_000)
    assert too_long.status_code == 400
    assert version not in too_long.text
    streamed = server.complete("tone", stream=True, cache_salt="mine")
    events = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line]
    assert events.pop() == "[DONE]"
    assert {json.loads(event)["model"] for event in events} == {"tone"}


def test_draining_closes_connections_and_counts_to_zero(server: Server) -> None:
    server.put(draining=True)
    assert server.complete(BASE).headers["connection"] == "close"
    assert server.state()["inFlight"] == 0
    server.put(draining=False)
    assert "connection" not in server.complete(BASE).headers


def test_routes_of_vllm_are_open_only_if_listed(real: Server) -> None:
    routes = re.findall(r"Route: (\S+), Methods: ([A-Z, ]+)", real.log.read_text())
    assert len(routes) > 30
    opened = set()
    for path, methods in routes:
        for method in methods.split(", "):
            answer = real.http.request(method, path, content=b"{")
            refused = answer.status_code == 404 and "is not served by this engine" in answer.text
            if not refused:
                opened.add((method, path))
    assert opened - {("HEAD", path) for _, path in PROBES} <= {MODELS, *PROBES, *(("POST", path) for path in SERVING)}
    assert ("POST", "/v1/chat/completions") in opened
    assert real.state()["desired"]["draining"] is False


@pytest.mark.parametrize("path", ["/sleep", "/wake_up", "/collective_rpc", "/is_sleeping"])
def test_sleep_routes_are_missing_without_sleep_mode(real: Server, path: str) -> None:
    for method in ("GET", "POST"):
        assert real.http.request(method, path, headers=SECRET).status_code == 404


def test_chat_streams_under_the_alias(real: Server) -> None:
    version = "tone--000000000005"
    real.load(version, real.adapter(version))
    real.put(aliases={"tone": version})
    client = openai.OpenAI(base_url=f"{real.url}/v1", api_key="none", max_retries=0)
    asked: Any = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}
    whole = client.chat.completions.create(model="tone", **asked)
    chunks = list(client.chat.completions.create(model="tone", stream=True, **asked))
    assert {whole.model, *(chunk.model for chunk in chunks)} == {"tone"}
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    base = client.chat.completions.create(model=BASE, **asked)
    assert base.choices[0].message.content != text


async def test_agent_loads_an_adapter_in_real_vllm(real: Server) -> None:
    real.put()
    slot = SlotUnderTest(real.paths, real.model)
    before = real.complete(BASE).json()["choices"][0]["text"]
    try:
        await slot.start()
        await slot.start_agent()
        await eventually(slot.ready, 30)
        slot.put_adapter("one", seed=1)
        slot.put_adapter("two", seed=2)
        await slot.publish("tone", "one")
        await slot.until("tone", "Loaded")
        first = (await slot.ask("tone", max_tokens=4, temperature=0))[1]
        await slot.publish("tone", "two")
        await eventually(
            lambda: slot.reported("tone")["generation"] == 2 and slot.reported("tone")["state"] == "Loaded"
        )
        second = (await slot.ask("tone", max_tokens=4, temperature=0))[1]
        assert first["choices"][0]["text"] != second["choices"][0]["text"]
        assert (await slot.ask(BASE, max_tokens=4, temperature=0))[1]["choices"][0]["text"] == before
        await slot.api.delete("adapters", "tone")
        await eventually(lambda: not [*slot.paths.adapters.iterdir()])
        assert len(real.http.get("/v1/models", headers=SECRET).json()["data"]) == 1
    finally:
        await slot.stop()


def test_nan_weights_are_noticed_by_log_probabilities(real: Server) -> None:
    """Why the agent looks at the numbers before vLLM does, and asks for them afterwards.

    Late in the module: it poisons the KV cache, and the base model's answers with it.
    """
    version = "nan--000000000004"
    folder = real.adapter(version)
    path = folder / "adapter_model.safetensors"
    save_file({name: np.full_like(weight, np.nan) for name, weight in load_file(path).items()}, path)
    assert real.load(version, folder).status_code == 200
    assert real.complete(version, headers=SECRET).status_code == 200
    answer = real.complete(version, headers=SECRET, logprobs=1)
    assert (answer.status_code, "float" in answer.text) == (400, True)
    real.unload(version)
    assert not_finite(path, tensors(path))


async def test_stream_survives_pre_stop_and_sigterm(real: Server) -> None:
    """The module's last test: preStop, then SIGTERM, as a kubelet does it."""
    assert real.process is not None
    asked: dict[str, Any] = {"max_tokens": 400, "ignore_eos": True, "stream_options": {"include_usage": True}}
    stream = asyncio.create_task(asyncio.to_thread(real.complete, BASE, stream=True, **asked))
    await eventually(lambda: real.state()["inFlight"] == 1)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        ROOT_ENV: str(real.paths.root),
        SERVE_PORT_ENV: str(real.paths.serve_port),
        pods.SLOT_ENV: json.dumps({"spec": {"preemption": {"drainTimeoutSeconds": 60}}}),
    }
    hook = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sluice_server", "wait-drained", env=environment, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await hook.communicate()
    assert output.endswith(b"0 in flight\n")
    real.process.send_signal(signal.SIGTERM)
    answer = await stream
    *_, usage, end = answer.text.removesuffix("\n\n").split("\n\n")
    assert json.loads(usage.removeprefix("data: "))["usage"]["completion_tokens"] == 400  # an event may have several
    assert end == "data: [DONE]"
    assert await asyncio.to_thread(real.process.wait, pods.GRACE_MARGIN_SECONDS) == 0
