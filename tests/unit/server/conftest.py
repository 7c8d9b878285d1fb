"""One slot with everything around it: fake vLLM behind the real middleware, fake API server, fake operator."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dev.cluster.ports import free_port
from sluice_api import pods
from sluice_api.inferenceengine import EngineLora, InferenceEngineSpec, ServedModel
from sluice_api.slots import SlotSpec
from sluice_server.agent.run import serve
from sluice_server.middleware import Middleware
from sluice_server.paths import SECRET_HEADER, STATE_PATH, SlotPaths
from sluice_server.start_gate import wait_at_start_gate
from tests.unit.server.fake_api import FakeAPI, Operator, api_client
from tests.unit.server.fake_vllm import BASE, FakeVLLM
from tests.unit.server.folders import make_adapter, make_model
from tests.unit.server.serving import served

SPEC = SlotSpec(
    namespace="demo",
    engine=BASE,
    index=1,
    device="cpu",
    spec=InferenceEngineSpec(
        model=ServedModel(uri="pvc://models/tiny"),
        lora=EngineLora(max_adapters=2, max_rank=8, volume_claims=("adapters",)),
    ),
)


async def eventually(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """What the condition returns once it is true; it may be a coroutine function."""
    async with asyncio.timeout(seconds):
        while True:
            found = condition()
            if isinstance(found, Awaitable):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.01)


class SlotUnderTest:
    """A slot's pod and its surroundings."""

    def __init__(self, paths: SlotPaths, model: Path) -> None:
        self.paths, self.model, self.spec = paths, model, SPEC
        self.ended = asyncio.Event()
        self.api, self.operator, self.vllm = FakeAPI(), Operator(), FakeVLLM()
        self.paths.adapters.mkdir(exist_ok=True)
        self.paths.scratch.mkdir(exist_ok=True)
        token = self.paths.at(pods.TOKEN_FILE)
        token.parent.mkdir(parents=True, exist_ok=True)
        token.write_text("first\n")
        self._stack = AsyncExitStack()
        self._vllm_stack = AsyncExitStack()
        self._agent: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._api_address = await self._stack.enter_async_context(self.api.served())
        self._report_url = await self._stack.enter_async_context(self.operator.served())
        self.http = await self._stack.enter_async_context(aiohttp.ClientSession())
        await self.api.apply("inferenceengines", BASE, spec={}, status={"slots": []})

    async def start_agent(self) -> None:
        self._agent = asyncio.create_task(
            serve(self.spec, self.paths, self._report_url, lambda: api_client(self._api_address))
        )
        await eventually(self._is_live)

    async def _is_live(self) -> bool:
        assert self._agent
        if self._agent.done():
            self._agent.result()
        with suppress(aiohttp.ClientConnectionError):
            async with self.http.get(f"http://127.0.0.1:{self.paths.agent_port}/livez") as answer:
                return answer.status == 200
        return False

    async def stop_agent(self) -> None:
        if self._agent:
            self._agent.cancel()
            with suppress(asyncio.CancelledError):
                await self._agent

    async def start_vllm(self) -> None:
        secret = self.paths.secret_file.read_text()
        app = Middleware(
            self.vllm, secret, BASE, memory=self.vllm.sleep.memory, end=self.ended.set, layers=self.vllm.layers
        )
        await self._vllm_stack.enter_async_context(served(app, self.paths.serve_port))

    async def stop_vllm(self) -> None:
        await self._vllm_stack.aclose()

    async def restart_vllm(self) -> None:
        await self.stop_vllm()
        self.ended.clear()
        self.vllm = FakeVLLM()
        if self.spec.sleep_level:
            await asyncio.to_thread(wait_at_start_gate, self.paths)
        await self.start_vllm()

    async def start_all(self) -> None:
        await self.start()
        await self.start_agent()
        await self.start_vllm()

    async def set_status(self, state: str, pod: str = "") -> None:
        """Write the slot's state into the engine's status, as the operator does."""
        status = {"slots": [{"index": self.spec.index, "state": state, "pod": pod or socket.gethostname()}]}
        await self.api.apply("inferenceengines", BASE, status=status)

    @property
    def last_report(self) -> dict[str, Any]:
        return self.operator.reports[-1] if self.operator.reports else {}

    async def stop(self) -> None:
        await self.stop_agent()
        await self._vllm_stack.aclose()
        await self._stack.aclose()

    def put_adapter(self, folder: str, seed: int = 1, **config: Any) -> Path:
        return make_adapter(self.paths.root / "volumes/adapters" / folder, self.model, seed, **config)

    async def publish(self, name: str, folder: str, **source: Any) -> None:
        spec = {"engine": BASE, "source": {"uri": f"pvc://adapters/{folder}", **source}}
        await self.api.apply("adapters", name, spec=spec)

    async def state(self) -> dict[str, Any]:
        headers = {SECRET_HEADER: self.paths.secret_file.read_text()}
        async with self.http.get(f"http://127.0.0.1:{self.paths.serve_port}{STATE_PATH}", headers=headers) as answer:
            found: dict[str, Any] = await answer.json()
            return found

    async def state_has_no_alias(self) -> bool:
        return not (await self.state())["desired"]["aliases"]

    async def ask(self, model: str, **fields: Any) -> tuple[int, Any]:
        url = f"http://127.0.0.1:{self.paths.serve_port}/v1/completions"
        async with self.http.post(url, json={"model": model, "prompt": "hello", **fields}) as answer:
            body = await answer.read()
            return answer.status, body if fields.get("stream") else json.loads(body)

    async def ready(self) -> bool:
        async with self.http.get(f"http://127.0.0.1:{self.paths.agent_port}/readyz") as answer:
            return answer.status == 200

    async def metrics(self) -> list[str]:
        """The agent's series, a line each."""
        async with self.http.get(f"http://127.0.0.1:{self.paths.agent_port}/metrics") as answer:
            return (await answer.text()).splitlines()

    def reported(self, name: str) -> dict[str, Any]:
        """The adapter as the newest report has it."""
        adapters = self.operator.reports[-1]["adapters"] if self.operator.reports else []
        return next((adapter for adapter in adapters if adapter["name"] == name), {})

    async def until(self, name: str, state: str) -> dict[str, Any]:
        await eventually(lambda: self.reported(name).get("state") == state)
        return self.reported(name)


@pytest.fixture
async def slot(tmp_path: Path) -> AsyncIterator[SlotUnderTest]:
    paths = SlotPaths(tmp_path, free_port(), free_port())
    under_test = SlotUnderTest(paths, make_model(paths.root / "volumes/models/tiny"))
    try:
        yield under_test
    finally:
        await under_test.stop()
