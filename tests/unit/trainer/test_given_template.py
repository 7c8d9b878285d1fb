"""model.chatTemplate: a built-in template, a file, or a text, for a model that has none or another one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from sluice_api.artifacts import AdapterManifest
from sluice_api.chat_template import TemplateName
from sluice_api.reasons import Reason
from sluice_trainer.errors import StageError
from tests.unit.trainer.conftest import CHATML
from tests.unit.trainer.jobs import ROWS, Job, chat, write_rows
from tests.unit.trainer.test_prepare import loss_and_all_text
from tests.unit.trainer.test_templates import use

TALK = {
    "messages": [
        {"role": "system", "content": "Be kind."},
        *chat("Hi", "Hello.")["messages"],
        *chat("Bye", "See you.")["messages"],
    ]
}
BEGIN, END = "<|im_start|>", "<|im_end|>"


def given(job: Job, **template: Any) -> Job:
    model = {"uri": "pvc://models/tiny", "chatTemplate": template}
    return replace(job, spec=(("model", model), ("dataset", {"uri": f"pvc://{job.dataset}", "validationSplit": "0%"})))


def configure_tokenizer(job: Job, **fields: Any) -> None:
    path = job.volumes / "models" / "tiny" / "tokenizer_config.json"
    content = json.loads(path.read_text()) | fields
    path.unlink()
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def without_template(job: Job) -> None:
    (job.volumes / "models" / "tiny" / "chat_template.jinja").unlink()


OF_BUILTINS = {
    TemplateName.CHAT_ML: f"{BEGIN}system\nBe kind.{END}\n{BEGIN}user\nHi{END}\n{BEGIN}assistant\nHello.{END}\n"
    f"{BEGIN}user\nBye{END}\n{BEGIN}assistant\nSee you.{END}\n",
    TemplateName.LLAMA: "<|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    f"Hello.{END}<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant"
    f"<|end_header_id|>\n\nSee you.{END}",
    TemplateName.MISTRAL: f"[INST] Be kind.\n\nHi [/INST] Hello.{END}[INST] Bye [/INST] See you.{END}",
    TemplateName.ALPACA: f"Be kind.\n\n### Instruction:\nHi\n\n### Response:\nHello.{END}\n\n"
    f"### Instruction:\nBye\n\n### Response:\nSee you.{END}\n\n",
    TemplateName.VICUNA: f"Be kind. USER: Hi ASSISTANT: Hello.{END}USER: Bye ASSISTANT: See you.{END}",
    TemplateName.PLAIN: f"Be kind.\n\nHi\n\nHello.{END}\n\nBye\n\nSee you.{END}\n\n",
}


@pytest.mark.parametrize("name", TemplateName)
@pytest.mark.parametrize("bos", [None, BEGIN])
def test_builtin_template_suits_a_tokenizer_of_few_special_tokens(
    job: Job, name: TemplateName, bos: str | None
) -> None:
    """Its one end of text, at which serving stops, ends each answer; a BOS is there once, if the tokenizer has one."""
    without_template(job)
    configure_tokenizer(job, bos_token=bos)
    ((learnt, read),) = loss_and_all_text(given(job, name=name), [TALK])
    space = " " * (name in (TemplateName.MISTRAL, TemplateName.VICUNA))
    assert learnt == f"{space}Hello.{END}{space}See you.{END}"
    once = BEGIN if bos and name is not TemplateName.CHAT_ML else ""  # which begins with that token anyway
    assert read == once + OF_BUILTINS[name]


@pytest.mark.parametrize("name", TemplateName)
def test_prompt_of_a_builtin_template_has_the_tokens_of_serving(job: Job, name: TemplateName) -> None:
    write_rows(job.volumes / job.dataset, [TALK])
    job = given(job, name=name)
    job.prepare()
    prepared = job.prepared()
    tokenizer = AutoTokenizer.from_pretrained(job.volumes / "models" / "tiny")
    served = tokenizer.apply_chat_template(
        TALK["messages"][:2], chat_template=prepared.manifest.chat_template, add_generation_prompt=True
    )["input_ids"]
    row = prepared.training[0]
    assert row.input_ids[: len(served)].tolist() == served
    assert row.loss_mask.tolist().index(1) == len(served)


PLAIN = {"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}


@pytest.mark.parametrize(
    ("row", "is_taken"),
    [
        ({"prompt": "Hi", "completion": "Hello."}, True),
        ({"question": "Hi", "answer": "Hello."}, True),
        (PLAIN, True),
        ({"text": "Hi"}, True),
        (chat("Hi", "Hello."), False),
        ({"prompt": [{"role": "user", "content": "Hi"}], "completion": "Hello."}, False),
        ({"system": "Be kind.", "prompt": "Hi", "completion": "Hello."}, False),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}, False),
        ({"instruction": "Hi", "output": "Hello."}, False),
        ({**PLAIN, "prompt": [{"role": "user", "content": "Hi"}]}, False),
        ({**PLAIN, "system": "Be kind."}, False),
    ],
)
def test_only_plain_texts_go_without_a_chat_template(job: Job, row: dict[str, Any], is_taken: bool) -> None:
    """In any other row a template shows who speaks; without it, serving would show another prompt than was learnt."""
    without_template(job)
    write_rows(job.volumes / job.dataset, [row, row, row])
    job = replace(
        job,
        spec=(*job.spec, ("dataset", {"uri": f"pvc://{job.dataset}", "validationSplit": "0%",
                                      "steps": [{"clean": {"unicode": "NFC"}}]})),
    )  # fmt: skip
    if is_taken:
        job.prepare()
        return
    with pytest.raises(StageError) as raised:
        job.prepare()
    assert raised.value.reason is Reason.MODEL_INVALID
    assert "Set model.chatTemplate to {name: ...}, one of Alpaca, ChatML, Llama," in raised.value.message


@pytest.mark.parametrize("uri", ["pvc://datasets/my.jinja", "configmap://templates/my.jinja"])
def test_template_of_a_file_is_recorded_and_exported(
    job: Job, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICE_CONFIG_MAPS", str(tmp_path / "configmaps"))
    text = CHATML.replace("<|im_start|>", "<|im_start|>by ")
    for folder in (job.volumes / "datasets", tmp_path / "configmaps" / "templates"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "my.jinja").write_text(text)
    job = replace(given(job, uri=uri), training=(("maxSteps", 1), ("warmupSteps", 0)))
    job.prepare()
    first = job.prepared().manifest
    assert first.chat_template == text
    job.train()
    job.export()
    assert (job.work / "export" / "chat_template.jinja").read_text() == text
    manifest = AdapterManifest.model_validate_json((job.work / "export" / "manifest.json").read_bytes())
    assert manifest.chat_template == text
    for folder in (job.volumes / "datasets", tmp_path / "configmaps" / "templates"):
        (folder / "my.jinja").write_text(CHATML)
    job.prepare()
    assert job.prepared().manifest.chat_template == CHATML
    assert job.prepared().manifest.plan != first.plan


def test_another_template_is_another_plan(job: Job) -> None:
    write_rows(job.volumes / job.dataset, ROWS)
    plans = set()
    for template in ({"name": "Plain"}, {"name": "Alpaca"}, {"inline": CHATML}):
        given(job, **template).prepare()
        plans.add(given(job, **template).prepared().manifest.plan)
    assert len(plans) == 3


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"inline": "{% for m in messages %}"}, "model.chatTemplate is wrong: "),
        ({"inline": "{{ messages.nothing.more }}"}, "model.chatTemplate is wrong: "),
        (
            {"inline": CHATML.replace(END, "</s>")},
            "model.chatTemplate ends an answer with '</s>', which is no special token of the model's tokenizer, so "
            "that serving would show it. Write {{ eos_token }} in its place, or use a built-in template.",
        ),
        ({"inline": CHATML.replace(END, BEGIN)}, f"model.chatTemplate ends the assistant's turn with {BEGIN}, but "),
        (
            {"uri": "pvc://datasets/none.jinja"},
            "model.chatTemplate.uri pvc://datasets/none.jinja: there is no such file. Correct model.chatTemplate.uri",
        ),
        ({"uri": "pvc://datasets/out.jinja"}, "out.jinja: it is a link that leads out of its volume"),
        ({"uri": "pvc://datasets/empty.jinja"}, "empty.jinja: it is empty."),
        ({"uri": "pvc://datasets/binary.jinja"}, "binary.jinja: it is no UTF-8 text."),
        ({"uri": "pvc://datasets/long.jinja"}, "long.jinja: it has more than 262144 bytes"),
        ({"uri": "pvc://datasets"}, "pvc://datasets: it can't be read (Is a directory)"),
    ],
)
def test_template_that_cannot_be_used_is_refused(job: Job, template: dict[str, Any], message: str) -> None:
    datasets = job.volumes / "datasets"
    (datasets / "out.jinja").symlink_to("/etc/passwd")
    (datasets / "empty.jinja").write_text("\n")
    (datasets / "binary.jinja").write_bytes(b"\xff\xfe")
    (datasets / "long.jinja").write_text(" " * 300_000)
    with pytest.raises(StageError) as raised:
        given(job, **template).prepare()
    assert (raised.value.reason, message in raised.value.message) == (Reason.MODEL_INVALID, True), raised.value.message


def test_builtin_template_needs_an_end_of_text(job: Job) -> None:
    configure_tokenizer(job, eos_token=None)
    with pytest.raises(StageError, match="its tokenizer has no eos_token, with which an answer ends"):
        given(job, name="Plain").prepare()


def test_row_of_tool_calls_needs_a_template_that_shows_them(job: Job) -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}]
    turns = [
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
        {"role": "assistant", "content": "It is 3."},
    ]
    write_rows(job.volumes / job.dataset, [{"messages": turns}])
    with pytest.raises(StageError, match=r"model\.chatTemplate leaves out the tool_calls beside"):
        given(job, name="Alpaca").prepare()


def test_template_is_given_instead_of_the_models_own(job: Job) -> None:
    use(job, "{{ raise_exception('the own one') }}")
    assert loss_and_all_text(given(job, name="Plain"), [chat("Hi", "Hello.")]) == [
        (f"Hello.{END}", f"Hi\n\nHello.{END}\n\n")
    ]
