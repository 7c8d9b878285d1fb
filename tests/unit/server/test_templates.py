"""Which chat template a request is rendered with: what the agent leaves beside an adapter, and the middleware does."""

import json
from pathlib import Path
from typing import Any

import pytest

from sluice_api.chat_template import TemplateName
from sluice_api.inferenceengine import InferenceEngineSpec
from sluice_files.chat_templates import builtin
from sluice_server.agent.adapter_cache import AdapterCache
from sluice_server.agent.rejected import AdapterRejected
from sluice_server.agent.resources import Key, WantedAdapter
from sluice_server.middleware import Middleware
from sluice_server.paths import SlotPaths
from sluice_server.templates import AdapterTemplates
from tests.unit.server.conftest import SPEC
from tests.unit.server.fake_vllm import BASE
from tests.unit.server.folders import make_adapter, make_model, write_manifest
from tests.unit.server.test_middleware import VERSION, Client

OWN, ENGINES = "{{ messages }} of the adapter", "{{ messages }} of the engine"


class Slot:
    """A slot with an adapter whose template a test chooses."""

    def __init__(self, paths: SlotPaths) -> None:
        self.paths = paths
        self.model = make_model(paths.root / "volumes/models/tiny")
        self.adapter = make_adapter(paths.root / "volumes/adapters/tone", self.model)
        self.paths.adapters.mkdir()
        self.given: dict[str, Any] = {}
        self.lora: dict[str, Any] = {}

    def fetch(self) -> str:
        spec = SPEC.spec.model_dump(mode="json", by_alias=True)
        spec["model"] |= self.given
        spec["lora"] |= self.lora
        told = SPEC.model_copy(update={"spec": InferenceEngineSpec.model_validate(spec)})
        adapter = WantedAdapter("tone", Key("uid", 1), "2026-01-01", "pvc://adapters/tone", None)
        return AdapterCache(told, self.paths).fetch(adapter)

    @property
    def template(self) -> str | None:
        return AdapterTemplates(self.paths.adapters).of(self.fetch())


@pytest.fixture
def slot(tmp_path: Path) -> Slot:
    return Slot(SlotPaths(tmp_path, 0, 0))


def engines_file(slot: Slot) -> None:
    (slot.model / "chat_template.jinja").write_text(ENGINES)


def engines_tokenizer(slot: Slot) -> None:
    (slot.model / "tokenizer_config.json").write_text(json.dumps({"chat_template": ENGINES}))


def engines_named(slot: Slot) -> None:
    named = [{"name": "tool_use", "template": "other"}, {"name": "default", "template": ENGINES}]
    (slot.model / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))


def engines_given(slot: Slot) -> None:
    engines_tokenizer(slot)
    slot.given = {"chatTemplate": {"inline": ENGINES}}


def engines_none(slot: Slot) -> None:
    pass


@pytest.mark.parametrize("engine", [engines_file, engines_tokenizer, engines_named, engines_given])
@pytest.mark.parametrize("says", ["manifest", "file"])
def test_template_of_an_adapter_is_its_own_only_if_it_differs(slot: Slot, engine: Any, says: str) -> None:
    engine(slot)

    def say(text: str) -> None:
        if says == "manifest":
            write_manifest(slot.adapter, slot.model, chat_template=text)
        else:
            (slot.adapter / "chat_template.jinja").write_text(text)

    say(ENGINES)
    assert slot.template is None
    same = slot.fetch()
    say(OWN)
    assert slot.template == OWN
    assert slot.fetch() != same  # the same weights, and another version: a version never changes
    say("")
    assert slot.template is None
    assert slot.fetch() == same


def test_template_of_an_adapter_is_used_where_the_model_has_none(slot: Slot) -> None:
    (slot.adapter / "chat_template.jinja").write_text(OWN)
    assert slot.template == OWN


def test_manifest_of_an_export_says_the_template_and_no_file_does(slot: Slot) -> None:
    write_manifest(slot.adapter, slot.model, chat_template=OWN)
    (slot.adapter / "chat_template.jinja").write_text("changed by hand")
    assert slot.template == OWN


def test_template_of_an_adapter_is_bounded_and_no_link(slot: Slot, tmp_path: Path) -> None:
    template = slot.adapter / "chat_template.jinja"
    template.write_text(" " * 300_000)
    with pytest.raises(AdapterRejected, match=r"chat_template\.jinja has 300000 bytes, more than 262144"):
        slot.fetch()
    template.unlink()
    (tmp_path / "token").write_text("secret")
    template.symlink_to(tmp_path / "token")
    with pytest.raises(AdapterRejected, match=r"chat_template\.jinja is a link out of its claim"):
        slot.fetch()


def test_engine_may_take_known_templates_alone(slot: Slot) -> None:
    slot.lora = {"chatTemplates": "Known"}
    template = slot.adapter / "chat_template.jinja"
    template.write_text(builtin(TemplateName.CHAT_ML))
    assert slot.template == builtin(TemplateName.CHAT_ML)
    template.write_text(OWN)
    with pytest.raises(AdapterRejected) as raised:
        slot.fetch()
    assert (raised.value.reason, str(raised.value)) == (
        "AdapterInvalid",
        "pvc://adapters/tone: it has a chat template of its own, and lora.chatTemplates of chat is Known. Train with "
        "chat's template or a built-in one, or set it to Any.",
    )
    engines_file(slot)
    template.write_text(ENGINES)
    assert slot.template is None


def test_template_that_would_stop_the_engine_is_refused(slot: Slot) -> None:
    (slot.adapter / "chat_template.jinja").write_text("{{ 'a' * 9**10 }}")
    with pytest.raises(AdapterRejected) as raised:
        slot.fetch()
    assert (raised.value.reason, str(raised.value)) == (
        "AdapterInvalid",
        "pvc://adapters/tone: its chat template takes more than 128 MiB of memory. Correct it, or leave it out.",
    )


@pytest.fixture
def client(tmp_path: Path) -> Client:
    """An alias `tone` of an adapter with a template of its own, and `same` of one without."""
    client = Client()
    client.vllm.adapters["same--0123456789ab"] = "/adapters"
    (tmp_path / VERSION).mkdir()
    (tmp_path / VERSION / "chat_template.jinja").write_text(OWN)
    client.middleware = Middleware(
        client.vllm, "s3cret", BASE, served_names=("org/Chat-8B",), templates=AdapterTemplates(tmp_path)
    )
    return client


TURNS = {"messages": [{"role": "user", "content": "hi"}]}
ALIASES = {"tone": VERSION, "same": "same--0123456789ab"}


@pytest.mark.parametrize(
    ("path", "body", "template"),
    [
        ("/v1/chat/completions", {"model": "tone", **TURNS}, OWN),
        ("/v1/chat/completions", {"model": BASE, "lora_adapter_name": "tone", **TURNS}, OWN),
        ("/tokenize", {"model": "tone", **TURNS}, OWN),
        ("/tokenize", {"model": "tone", "prompt": "hi"}, None),
        ("/v1/completions", {"model": "tone", "prompt": "hi"}, None),
        ("/v1/chat/completions", {"model": "same", **TURNS}, None),
        ("/v1/chat/completions", {"model": BASE, **TURNS}, None),
        ("/v1/chat/completions", {"model": "org/Chat-8B", **TURNS}, None),
        ("/v1/chat/completions", TURNS, None),
    ],
)
async def test_request_has_the_template_of_its_adapter(
    client: Client, path: str, body: dict[str, Any], template: str | None
) -> None:
    await client.put(aliases=ALIASES)
    await client.ask("POST", path, body)
    assert client.vllm.seen[-1].get("chat_template") == template


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/v1/messages/count_tokens"])
async def test_route_that_takes_no_template_is_refused_for_an_adapter_that_has_one(client: Client, path: str) -> None:
    await client.put(aliases=ALIASES)
    answer = await client.ask("POST", path, {"model": "tone", **TURNS})
    assert answer.status == 400
    assert answer.json["error"]["message"] == (
        f"tone was trained with a chat template of its own, which vLLM can't use on {path}. Ask it on "
        "/v1/chat/completions."
    )
    assert (await client.state())["inFlightByVersion"] == {}
    await client.ask("POST", path, {"model": "same", **TURNS})
    assert client.vllm.seen[-1]["model"] == ALIASES["same"]


@pytest.mark.parametrize(
    "fields", [{"chat_template": OWN}, {"chat_template": ""}, {"chat_template_kwargs": {"chat_template": OWN, "a": 1}}]
)
@pytest.mark.parametrize("model", [BASE, "tone", "same", "org/Chat-8B"])
async def test_template_of_a_client_is_refused(client: Client, fields: dict[str, Any], model: str) -> None:
    await client.put(aliases=ALIASES)
    answer = await client.ask("POST", "/v1/chat/completions", {"model": model, **TURNS, **fields})
    assert answer.status == 400
    assert answer.json["error"]["message"].startswith("A chat template in a request is not used. Leave it out:")
    assert not client.vllm.seen


async def test_keywords_of_a_template_are_let_through(client: Client) -> None:
    body = {"model": BASE, **TURNS, "chat_template": None, "chat_template_kwargs": {"enable_thinking": False}}
    await client.ask("POST", "/v1/chat/completions", body)
    assert client.vllm.seen[-1]["chat_template_kwargs"] == {"enable_thinking": False}


async def test_served_name_is_the_base_model(client: Client) -> None:
    await client.put(aliases=ALIASES)
    answer = await client.complete("org/Chat-8B")
    assert (answer.status, answer.json["model"]) == (200, "org/Chat-8B")
    assert client.vllm.seen[-1]["model"] == BASE
    cards = (await client.ask("GET", "/v1/models")).json["data"]
    assert [card["id"] for card in cards] == [BASE, "org/Chat-8B", "tone", "same"]
    raw = (await client.ask("GET", "/v1/models", headers={"x-sluice-secret": "s3cret"})).json["data"]
    assert "org/Chat-8B" not in {card["id"] for card in raw}  # the agent would take it for a version
    unknown = (await client.complete("org/chat-8b")).json["error"]["message"]
    assert unknown.endswith("Valid aliases: chat, org/Chat-8B, tone, same.")


async def test_words_of_an_error_are_kept_for_a_served_name(client: Client) -> None:
    """The engine's name may be any word, so it is no name wherever it stands."""
    answer = await client.complete("org/Chat-8B", max_tokens=1000)
    assert answer.status == 400
    assert "org/Chat-8B" not in answer.json["error"]["message"]


def test_adapter_with_a_served_name_is_rejected(slot: Slot) -> None:
    told = SPEC.model_copy(update={"spec": SPEC.spec.model_copy(update={"served_names": ("tone",)})})
    adapter = WantedAdapter("tone", Key("uid", 1), "2026-01-01", "pvc://adapters/tone", None)
    with pytest.raises(AdapterRejected, match="tone is the base model's name: use another one"):
        AdapterCache(told, slot.paths).fetch(adapter)
