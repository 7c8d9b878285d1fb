"""What clients and the agent see of a vLLM behind the middleware; the fake's answers come in any pieces."""

import asyncio
import json
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from fastapi import FastAPI, Request
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from sluice_server.asgi import Message
from sluice_server.middleware import MAX_BODY_BYTES, Middleware
from sluice_server.paths import END_PATH, SECRET_HEADER, STATE_PATH, TERMINATE_PATH
from sluice_server.rewrite import ResponseNames
from tests.unit.server.fake_vllm import BASE, FakeVLLM

SECRET = {SECRET_HEADER: "s3cret"}
VERSION = "tone--0123456789ab"


@dataclass
class Answer:
    """What came back."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Speaks ASGI to the middleware, with request bodies in pieces too."""

    def __init__(self) -> None:
        self.vllm = FakeVLLM()
        self.vllm.adapters[VERSION] = "/adapters"
        self.ended: list[bool] = []
        self.app: FastAPI | None = None
        end = lambda: self.ended.append(True)  # noqa: E731
        self.middleware = Middleware(self.vllm, "s3cret", BASE, memory=self.vllm.sleep.memory, end=end)

    async def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, *, pieces: int = 1
    ) -> Answer:
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        sent = {"content-type": "application/json", "content-length": str(len(content)), **(headers or {})}
        scope = {
            "type": "http",
            "app": self.app,
            "method": method,
            "path": path.partition("?")[0],
            "query_string": path.partition("?")[2].encode(),
            "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
        }
        step = len(content) // pieces + 1
        messages = [
            {"type": "http.request", "body": content[start : start + step], "more_body": start + step < len(content)}
            for start in range(0, max(len(content), 1), step)
        ]
        answer = Answer()

        async def receive() -> Message:
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {key.decode(): value.decode() for key, value in message["headers"]}
            answer.body += message.get("body", b"")

        await self.middleware(scope, receive, send)
        if "content-length" in answer.headers:
            assert int(answer.headers["content-length"]) == len(answer.body)
        return answer

    async def put(self, **desired: Any) -> Answer:
        return await self.ask("PUT", STATE_PATH, desired, SECRET)

    async def complete(self, model: str, **fields: Any) -> Answer:
        return await self.ask("POST", "/v1/completions", {"model": model, "prompt": "x", **fields})

    async def state(self) -> Any:
        return (await self.ask("GET", STATE_PATH, headers=SECRET)).json


@pytest.fixture
def client() -> Client:
    return Client()


async def test_alias_is_renamed_in_request_and_response(client: Client) -> None:
    await client.put(aliases={"tone": VERSION})
    answer = await client.complete("tone")
    assert (answer.status, answer.json["model"]) == (200, "tone")
    assert client.vllm.seen[-1]["model"] == VERSION


async def test_request_for_the_base_model_is_not_changed(client: Client) -> None:
    body = b'{"model": "chat",   "prompt": "x"}'
    answer = await client.ask("POST", "/v1/completions", body)
    assert (answer.status, answer.json["model"]) == (200, BASE)
    assert (await client.ask("POST", "/v1/completions", {"prompt": "x"})).json["model"] == BASE


@pytest.mark.parametrize("name", [VERSION, "nobody", "chat ", "TONE"])
async def test_unknown_model_is_not_found(client: Client, name: str) -> None:
    await client.put(aliases={"tone": VERSION})
    answer = await client.complete(name)
    message = f"The model `{name}` does not exist. Valid aliases: chat, tone."
    assert answer.status == 404
    assert answer.json == {"error": {"message": message, "type": "NotFoundError", "param": "model", "code": 404}}
    assert not client.vllm.seen


async def test_unavailable_alias_has_its_reason(client: Client) -> None:
    await client.put(unavailable={"tone": {"reason": "RankTooLarge", "message": "rank 64."}})
    answer = await client.complete("tone")
    assert answer.status == 503
    assert answer.json["error"]["message"] == "The model `tone` is unavailable: RankTooLarge: rank 64."


async def test_models_are_listed_by_alias(client: Client) -> None:
    client.vllm.adapters["other--0123456789ab"] = "/not-live-yet"
    await client.put(aliases={"tone": VERSION})
    cards = (await client.ask("GET", "/v1/models")).json["data"]
    assert [(card["id"], card["root"]) for card in cards] == [(BASE, "/volumes/models/tiny"), ("tone", VERSION)]
    raw = (await client.ask("GET", "/v1/models", headers=SECRET)).json["data"]
    assert [card["id"] for card in raw] == [BASE, VERSION, "other--0123456789ab"]


async def test_error_names_the_alias(client: Client) -> None:
    await client.put(aliases={"tone": VERSION})
    answer = await client.complete("tone", max_tokens=1000)
    assert answer.status == 400
    assert answer.json["error"]["message"] == "max_tokens is too large for tone"


@given(cuts=st.lists(st.integers(0, 400), max_size=12), pieces=st.integers(1, 9))
def test_stream_is_renamed_however_it_is_cut(cuts: list[int], pieces: int) -> None:
    def cut(body: bytes) -> list[bytes]:
        places = sorted({0, len(body), *(place for place in cuts if place < len(body))})
        return [body[start:end] for start, end in pairwise(places)]

    async def run() -> None:
        client = Client()
        client.vllm.chunk = cut
        await client.put(aliases={"tone": VERSION})
        body = {"model": "tone", "prompt": "x" * 50, "stream": True}
        answer = await client.ask("POST", "/v1/completions", body, pieces=pieces)
        *events, done = [line.removeprefix("data: ") for line in answer.body.decode().split("\n\n") if line]
        parsed = [json.loads(event) for event in events]
        assert done == "[DONE]"
        assert {event["model"] for event in parsed} == {"tone"}
        # Text that the model generates is not renamed.
        assert parsed[1]["choices"][0]["text"] == f'He said "model":"{VERSION}" twice, and \\n.'
        whole = await client.complete("tone")
        assert whole.json["model"] == "tone"

    asyncio.run(run())


@given(text=st.text(), others=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
def test_only_the_model_field_is_renamed(text: str, others: dict[str, str]) -> None:
    answer = {
        "model": VERSION,
        "choices": [{"text": text, "arguments": json.dumps({"model": VERSION})}],
        "others": others,
    }
    for separators in ((",", ":"), (", ", ": ")):
        changed = ResponseNames(VERSION, "tone").json(json.dumps(answer, separators=separators).encode())
        assert json.loads(changed) == answer | {"model": "tone"}


async def test_cache_salt_cannot_be_the_name_of_an_adapter(client: Client) -> None:
    await client.complete(BASE, cache_salt=VERSION)
    assert client.vllm.seen[-1]["cache_salt"] == f"client:{VERSION}"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("POST", "/v1/load_lora_adapter", 404),
        ("POST", "/v1/unload_lora_adapter", 404),
        ("POST", "/sleep", 404),
        ("POST", "/sleep?level=2", 404),
        ("POST", "/wake_up", 404),
        ("POST", "/collective_rpc", 404),
        ("GET", "/is_sleeping", 404),
        ("POST", END_PATH, 404),
        ("POST", "/adapters", 404),
        ("POST", "/invocations", 404),
        ("GET", "/v1/completions", 404),
        ("POST", "/v1/completions/", 404),
        ("POST", "//v1/completions", 404),
        ("GET", "/docs", 404),
        ("GET", STATE_PATH, 404),
        ("PUT", STATE_PATH, 404),
        ("POST", TERMINATE_PATH, 404),
    ],
)
async def test_routes_of_the_agent_need_the_secret(client: Client, method: str, path: str, status: int) -> None:
    for headers in ({}, {SECRET_HEADER: ""}, {SECRET_HEADER: "s3cre"}, {SECRET_HEADER: "s3crets"}):
        assert (await client.ask(method, path, {"lora_name": "x", "aliases": {}}, headers)).status == status
    assert not client.vllm.calls
    assert not client.ended
    assert (await client.state())["terminating"] is False


async def test_secret_opens_the_routes_of_vllm(client: Client) -> None:
    assert (await client.ask("POST", "/sleep?level=2&mode=wait", headers=SECRET)).json == {
        "status": "sleeping",
        "level": 2,
    }
    assert (await client.ask("GET", "/is_sleeping", headers=SECRET)).json == {"is_sleeping": True}
    assert (await client.ask("POST", END_PATH, headers=SECRET)).status == 200
    assert client.ended


async def test_asleep_refuses_requests_and_reports_memory(client: Client) -> None:
    assert (await client.state())["memory"] is None
    await client.put(asleep=True)
    await client.ask("POST", "/sleep", headers=SECRET)
    answer = await client.complete(BASE)  # vLLM would not answer before it wakes.
    assert (answer.status, answer.json["error"]["type"]) == (503, "ServiceUnavailableError")
    assert (await client.state())["memory"] == [{"used": 2 << 30, "total": 80 << 30}]
    await client.ask("POST", "/wake_up", headers=SECRET)
    await client.put()
    assert (await client.complete(BASE)).status == 200


@pytest.mark.parametrize(
    ("fields", "status", "inner", "message"),
    [
        ({"model": BASE, "lora_adapter_name": "tone"}, 200, VERSION, ""),
        ({"lora_adapter_name": "tone"}, 200, VERSION, ""),
        ({"model": "tone", "lora_adapter_name": "tone"}, 200, VERSION, ""),
        ({"model": BASE, "lora_adapter_name": None}, 200, BASE, ""),
        ({"model": BASE, "lora_adapter_name": BASE}, 200, BASE, ""),
        ({"model": BASE, "lora_adapter_name": "nobody"}, 404, "", "The model `nobody` does not exist."),
        ({"model": BASE, "lora_adapter_name": VERSION}, 404, "", f"The model `{VERSION}` does not exist."),
        ({"model": "other", "lora_adapter_name": "tone"}, 400, "", "model is 'other' and lora_adapter_name 'tone'."),
        ({"model": BASE, "lora_adapter_name": 7}, 400, "", "lora_adapter_name is no name. Write the adapter's name"),
        ({"model": BASE, "lora_path": "tone"}, 400, "", "lora_path would be ignored: write the adapter's name into"),
        ({"model": BASE, "adapter_id": "tone"}, 400, "", "adapter_id would be ignored: write the adapter's name"),
    ],
)
async def test_lora_adapter_name_and_the_fields_of_other_servers(
    client: Client, fields: dict[str, Any], status: int, inner: str, message: str
) -> None:
    await client.put(aliases={"tone": VERSION, "other": "other--0123456789ab"})
    answer = await client.ask("POST", "/v1/completions", {"prompt": "x", **fields})
    assert answer.status == status
    if message:
        assert answer.json["error"]["message"].startswith(message)
        assert not client.vllm.seen
    else:
        assert client.vllm.seen[-1]["model"] == inner
        assert "lora_adapter_name" not in client.vllm.seen[-1]


class Prompt(BaseModel):
    """A body of vLLM's."""

    model: str = ""
    prompt: str = ""


class Chat(BaseModel):
    """Another one of the same route."""

    messages: str = Field("", alias="messages_")
    lora: str = ""


@pytest.mark.parametrize(
    ("field", "known"),
    [("prompt", True), ("messages", True), ("messages_", True), ("lora", True), ("store", True), ("temprature", False)],
)
async def test_unknown_field_is_refused(client: Client, field: str, known: bool) -> None:
    app = FastAPI()

    @app.post("/v1/completions")
    async def complete(request: Prompt | Chat, raw: Request) -> None: ...

    client.app = app
    answer = await client.ask("POST", "/v1/completions", {"model": BASE, field: "x"})
    assert answer.status == (200 if known else 400)
    if not known:
        assert answer.json["error"]["message"] == "vLLM has no field temprature here, and would ignore it."
        assert answer.json["error"]["param"] == field


async def test_websocket_is_refused(client: Client) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    await client.middleware({"type": "websocket", "path": "/v1/realtime", "headers": []}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize(
    ("body", "status"),
    [(b'{"model":', 400), (b"[" * 100_000, 400), (b" " * (MAX_BODY_BYTES + 1), 413)],
    ids=["not JSON", "too deep", "too long"],
)
async def test_unreadable_body_is_refused(client: Client, body: bytes, status: int) -> None:
    answer = await client.ask("POST", "/v1/completions", body)
    assert (answer.status, answer.json["error"]["code"]) == (status, status)
    assert (await client.state())["inFlight"] == 0


async def test_in_flight_counts_from_first_to_last_byte(client: Client) -> None:
    await client.put(aliases={"tone": VERSION})
    client.vllm.hold.clear()
    waiting = [asyncio.create_task(client.complete(model)) for model in ("tone", "tone", BASE)]
    waiting.append(asyncio.create_task(client.complete("tone", stream=True)))
    await asyncio.sleep(0.02)
    state = await client.state()
    assert state["inFlight"] == 4
    assert state["inFlightByVersion"] == {VERSION: 3, BASE: 1}
    gone = waiting.pop()
    gone.cancel()
    await asyncio.wait([gone])
    await client.put(aliases={})
    assert (await client.complete("tone")).status == 404  # From now on; those in flight go on.
    assert (await client.state())["inFlightByVersion"] == {VERSION: 2, BASE: 1}
    client.vllm.hold.set()
    assert [answer.json["model"] for answer in await asyncio.gather(*waiting)] == ["tone", "tone", BASE]
    state = await client.state()
    assert (state["inFlight"], state["inFlightByVersion"]) == (0, {})
    assert state["quietSeconds"] >= 0.0


async def test_draining_closes_connections(client: Client) -> None:
    assert "connection" not in (await client.complete(BASE)).headers
    assert (await client.put(draining=True)).json["drainingSeconds"] >= 0
    assert (await client.complete(BASE)).headers["connection"] == "close"
    assert (await client.put(draining=False)).json["drainingSeconds"] == 0
    assert "connection" not in (await client.complete(BASE)).headers


async def test_terminating_pod_drains_whatever_the_agent_puts(client: Client) -> None:
    await client.ask("POST", TERMINATE_PATH, headers=SECRET)
    await client.put(aliases={"tone": VERSION}, draining=False)
    assert (await client.state())["terminating"] is True
    assert (await client.complete("tone")).headers["connection"] == "close"


async def test_invalid_state_is_refused_and_changes_nothing(client: Client) -> None:
    await client.put(aliases={"tone": VERSION})
    before = (await client.state())["desired"]
    bodies: list[dict[str, Any]] = [{"aliases": []}, {"alias": {}}, {"unavailable": {"tone": "because"}}]
    for wrong in bodies:
        assert (await client.put(**wrong)).status == 400
    assert (await client.state())["desired"] == before


def test_boot_is_new_at_every_start() -> None:
    async def boots() -> list[str]:
        return [(await Client().state())["boot"] for _ in range(2)]

    first, second = asyncio.run(boots())
    assert first != second
