"""A model as facebook/opt-125m is, in real vLLM: pickled weights, learned positions, code, and no chat template.

The engine gives it one, and an adapter that our trainer made with another one is answered with that. One vLLM serves
the module.
"""

import json
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from sluice_api.chat_template import TemplateName
from sluice_api.inferenceengine import InferenceEngineSpec
from sluice_api.slots import SlotSpec
from sluice_files.chat_templates import builtin
from tests.contract.models import log_probability
from tests.contract.test_vllm import SECRET, Server, new_paths, started
from tests.unit.server.conftest import SlotUnderTest, eventually
from tests.unit.server.fake_vllm import BASE
from tests.unit.trainer.jobs import ROWS, Job, write_rows
from tests.unit.trainer.opt import make_opt

SPEC = InferenceEngineSpec.model_validate(
    {
        "model": {"uri": "pvc://models/opt", "chatTemplate": {"name": "ChatML"}},
        "servedNames": ["facebook/opt-tiny"],
        "lora": {"maxAdapters": 2, "maxRank": 8, "volumeClaims": ["adapters"]},
        "serving": {"dtype": "float32", "maxConcurrentRequests": 4},
    }
)
TURNS = [{"role": "user", "content": "What is item 3?"}]


def train(volumes: Path) -> None:
    """Make an adapter of the model in adapters/plain, of rows that were rendered with the template Plain."""
    write_rows(volumes / "datasets" / "rows.jsonl", ROWS)
    (volumes / "adapters").mkdir(exist_ok=True)
    model = {"uri": "pvc://models/opt", "chatTemplate": {"name": "Plain"}}
    training = (("maxSteps", 6), ("learningRate", "1e-2"), ("warmupSteps", 0), ("dtype", "float32"))
    job = Job(volumes, spec=(("model", model),), training=training)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLUICE_VOLUMES", str(volumes))
        patch.setenv("SLUICE_METRICS_PORT", "0")
        job.prepare()
        job.train()
        job.export()
    shutil.move(job.work / "export", volumes / "adapters" / "plain")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    paths = new_paths(tmp_path_factory.mktemp("opt"))
    folder = make_opt(paths.root / "volumes/models/opt", paths.root / "volumes/models/tiny", positions=256)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "code.Model"}}))
    (folder / "code.py").write_text("raise SystemExit('the code was run')")
    train(paths.root / "volumes")
    with started(paths, "-m", "sluice_server", "vllm", spec=SPEC) as server:
        yield server


@pytest.fixture
async def slot(server: Server) -> AsyncIterator[SlotUnderTest]:
    """The agent beside it, with the adapter `tone`."""
    server.http.put("/sluice/state", json={}, headers=SECRET)
    found = SlotUnderTest(server.paths, server.paths.root / "volumes/models/opt")
    found.spec = SlotSpec(namespace="demo", engine=BASE, index=1, device="cpu", spec=SPEC)
    try:
        await found.start()
        await found.start_agent()
        await eventually(found.ready, 60)
        await found.publish("tone", "plain")
        await eventually(lambda: found.reported("tone").get("state") in ("Loaded", "Failed"), 60)
        assert found.reported("tone")["state"] == "Loaded", found.reported("tone")
        yield found
    finally:
        await found.stop()


def rendered(server: Server, name: TemplateName) -> list[int]:
    """The tokens of TURNS, by a built-in template."""
    tokenizer = AutoTokenizer.from_pretrained(server.paths.root / "volumes/models/opt")
    found: list[int] = tokenizer.apply_chat_template(TURNS, chat_template=builtin(name), add_generation_prompt=True)[
        "input_ids"
    ]
    return found


def tokens(server: Server, model: str) -> list[int]:
    """The same, as vLLM has them."""
    answer = server.http.post("/tokenize", json={"model": model, "messages": TURNS})
    assert answer.status_code == 200, answer.text
    found: list[int] = answer.json()["tokens"]
    return found


def chat(server: Server, model: str, **fields: Any) -> Any:
    body = {"model": model, "messages": TURNS, "max_tokens": 8, "temperature": 0, **fields}
    return server.http.post("/v1/chat/completions", json=body)


async def test_adapter_is_answered_with_the_template_that_it_was_trained_with(
    server: Server, slot: SlotUnderTest
) -> None:
    chat_ml, plain = rendered(server, TemplateName.CHAT_ML), rendered(server, TemplateName.PLAIN)
    assert chat_ml != plain
    for name in (BASE, "facebook/opt-tiny"):
        assert tokens(server, name) == chat_ml
        answer = chat(server, name).json()
        assert (answer["model"], answer["usage"]["prompt_tokens"]) == (name, len(chat_ml))
    assert tokens(server, "tone") == plain
    answer = chat(server, "tone").json()
    assert (answer["model"], answer["usage"]["prompt_tokens"]) == ("tone", len(plain))
    refused = server.http.post("/v1/responses", json={"model": "tone", "input": "hi"})
    assert (refused.status_code, "a chat template of its own" in refused.text) == (400, True)
    assert server.http.post("/v1/responses", json={"model": BASE, "input": "hi"}).status_code == 200


async def test_pickled_model_and_its_adapter_answer_with_the_numbers_of_peft(
    server: Server, slot: SlotUnderTest
) -> None:
    volumes = server.paths.root / "volumes"
    for name, adapter in ((BASE, None), ("tone", volumes / "adapters/plain")):
        answer = server.complete(name, logprobs=1, max_tokens=1).json()["choices"][0]["logprobs"]
        here = log_probability(volumes / "models/opt", "hello", answer["tokens"][0], adapter)
        assert answer["token_logprobs"][0] == pytest.approx(here, abs=2e-3)


def test_template_of_a_client_is_refused(server: Server) -> None:
    """Though vLLM would take it: it has to take those that the middleware writes."""
    theirs = {"messages": TURNS, "model": BASE, "chat_template": "theirs", "max_tokens": 1}
    assert server.http.post("/v1/chat/completions", json=theirs, headers=SECRET).status_code == 200
    for fields in ({"chat_template": "theirs"}, {"chat_template_kwargs": {"chat_template": "theirs"}}):
        assert chat(server, BASE, **fields).status_code == 400
