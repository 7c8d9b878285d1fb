"""A small ASGI application that speaks vLLM's contract; tests/contract proves that vLLM does so too."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sluice_server.asgi import Receive, Scope, Send, read_body
from sluice_server.control import AdapterLayers
from tests.unit.server.fake_sleep import FakeSleep

BASE = "chat"
ENDLESS = "go on for ever"
"""The prompt of a request that ends only when it is aborted."""
_LIMIT = 2**20


class FakeVLLM:
    """Base model `chat`, adapters loaded at run time. `hold` keeps answers waiting until it is set."""

    def __init__(self) -> None:
        self.adapters: dict[str, str] = {}
        self.hold = asyncio.Event()
        self.hold.set()
        self.healthy = True
        self.dies_of: str | None = None
        """An adapter that ends its engine while it loads, in the middle of the answer or with an error."""
        self.refuses_to_load: str | None = None
        self.answers_nan = False
        self.passes_over: tuple[str, ...] | None = None
        """Layers of which it lets the base model's answer in the adapter's name."""
        self.seen: list[dict[str, Any]] = []
        self.calls: list[str] = []
        self.chunk: Callable[[bytes], list[bytes]] = lambda body: [body]
        self.sleep = FakeSleep()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        method, path = scope["method"], scope["path"]
        body = await read_body(receive, _LIMIT)
        request: dict[str, Any] = json.loads(body) if body else {}
        match method, path:
            case "GET", "/health":
                await _text(send, 200 if self.healthy and not self.sleep.dead else 503, "")
            case "GET", "/metrics":
                await _text(send, 200, f'vllm:num_requests_running{{model_name="{BASE}"}} {self.sleep.running}.0\n')
            case "GET", "/v1/models":
                await self._json(send, 200, {"object": "list", "data": self._cards()})
            case "POST", "/v1/load_lora_adapter":
                await self._load(request, send)
            case "POST", "/v1/unload_lora_adapter":
                await self._unload(request, send)
            case "POST", "/v1/completions" | "/v1/chat/completions":
                await self._complete(request, send)
            case "POST", "/tokenize" | "/v1/responses" | "/v1/messages" | "/v1/messages/count_tokens":
                self.seen.append(request)
                await self._json(send, 200, {"model": request.get("model")})
            case _ if answer := await self.sleep.route(method, path, scope.get("query_string", b""), request):
                self.calls.extend(answer.call)
                await self._json(send, answer.status, answer.body)
            case _:
                await self._json(send, 404, {"detail": "Not Found"})

    async def layers(self, _app: Any, version: str) -> AdapterLayers:
        """What its workers answer about an adapter."""
        assert version in self.adapters
        return AdapterLayers(layers=6, passed_over=self.passes_over or ())

    def _cards(self) -> list[dict[str, Any]]:
        base = {"id": BASE, "object": "model", "root": "/volumes/models/tiny", "parent": None}
        return [
            base,
            *({"id": name, "object": "model", "root": path, "parent": BASE} for name, path in self.adapters.items()),
        ]

    async def _load(self, request: dict[str, Any], send: Send) -> None:
        name, path = request["lora_name"], request["lora_path"]
        self.calls.append(f"load {name}")
        if name in self.adapters:
            message = (
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set"
            )
            return await self._error(send, 400, "InvalidUserInput", message)
        if not await asyncio.to_thread(Path(path).exists):
            return await self._error(
                send, 404, "NotFoundError", f"Loading lora {name} failed: No adapter found for {path}"
            )
        if self.dies_of and name.startswith(f"{self.dies_of}--"):
            self.healthy = False
            return await self._error(send, 500, "InternalServerError", "EngineCore encountered an issue.")
        if self.refuses_to_load:
            return await self._error(send, 500, "InternalServerError", self.refuses_to_load)
        self.adapters[name] = path
        self.sleep.spoiled.discard(name)
        return await _text(send, 200, f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: dict[str, Any], send: Send) -> None:
        name = request["lora_name"]
        self.calls.append(f"unload {name}")
        if self.adapters.pop(name, None) is None:
            return await self._error(send, 404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        return await _text(send, 200, f"Success: LoRA adapter '{name}' removed successfully.")

    async def _complete(self, request: dict[str, Any], send: Send) -> None:
        name = request.get("model") or BASE
        self.seen.append(request)
        if name != BASE and name not in self.adapters:
            message = f"The model `{name}` does not exist. Valid aliases: {BASE}."
            return await self._error(send, 404, "NotFoundError", message, "model")
        if request.get("logprobs") and self.answers_nan:
            return await self._error(send, 400, "BadRequestError", "Out of range float values are not JSON compliant")
        if request.get("max_tokens", 1) > 512:
            return await self._error(send, 400, "BadRequestError", f"max_tokens is too large for {name}", "max_tokens")
        if request.get("stream"):
            return await self._stream(name, send)
        hold = asyncio.Event() if request.get("prompt") == ENDLESS else self.hold
        aborted = await self.sleep.turn(hold, name)
        text, logprob = ("??", -9.0) if self.sleep.is_spoiled(name) else ("hm", -1.5)
        if name != BASE and self.passes_over is None:
            logprob -= 1  # an adapter changes numbers
        reason = "abort" if aborted else "length"
        choice = {"index": 0, "text": text, "logprobs": {"token_logprobs": [logprob]}, "finish_reason": reason}
        answer = {"id": "cmpl-1", "object": "text_completion", "model": name, "choices": [choice]}
        return await self._json(send, 200, answer)

    async def _stream(self, name: str, send: Send) -> None:
        quote = f'He said "model":"{name}" twice, and \\n.'
        events = [{"id": "cmpl-1", "model": name, "choices": [{"index": 0, "text": text}]} for text in ("a", quote, "")]
        lines = [f"data: {json.dumps(event, separators=(',', ':'))}\n\n" for event in events]
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for part in self.chunk("".join([*lines, "data: [DONE]\n\n"]).encode()):
            await self.hold.wait()
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _json(self, send: Send, status: int, answer: Any) -> None:
        await _respond(
            send, status, b"application/json", self.chunk(json.dumps(answer, separators=(",", ":")).encode())
        )

    async def _error(self, send: Send, status: int, kind: str, message: str, param: str | None = None) -> None:
        await self._json(send, status, {"error": {"message": message, "type": kind, "param": param, "code": status}})


def _text(send: Send, status: int, text: str) -> Awaitable[None]:
    return _respond(send, status, b"text/plain; charset=utf-8", [text.encode()])


async def _respond(send: Send, status: int, kind: bytes, parts: list[bytes]) -> None:
    length = str(sum(map(len, parts))).encode()
    headers = [(b"content-type", kind), (b"content-length", length)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
