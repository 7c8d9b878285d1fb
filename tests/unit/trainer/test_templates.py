"""Chat templates that do more than append: each answer is learnt as serving would show and end it, or not at all."""

from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sluice_api.reasons import Reason
from sluice_trainer.errors import StageError
from tests.unit.trainer.conftest import CHATML
from tests.unit.trainer.jobs import Job, chat, write_rows
from tests.unit.trainer.test_prepare import loss_and_all_text

TALK = {"messages": [*chat("Hi", "Hello.")["messages"], *chat("Bye", "See you.")["messages"]]}
BEGIN, END = "<|im_start|>", "<|im_end|>"

STRIPS_THOUGHTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n"
    "{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen3's: an empty think block before the last answer, none before the others."""
OPENS_THOUGHTS = CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
"""As R1's: the generation prompt opens a think block, and what was said has none."""
NEXT_TURN_ENDS = (
    "{% for m in messages %}{{ '<|im_end|>' if m.role == 'user' else '<|im_start|>' }}\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>\n{% endif %}"
)
"""As GLM's: an answer has no end of its own; the next turn's first token is a stop token."""
NO_END = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{{ ' ' }}{% endif %}"
)
CALLS = "{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}"
WITH_TOOLS = "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}" + CHATML.replace(
    "{{ message.content }}", "{{ message.content }}" + CALLS
)


def use(job: Job, template: str) -> None:
    path = job.volumes / "models" / "tiny" / "chat_template.jinja"
    path.unlink()
    path.write_text(template)


def test_template_that_rewrites_earlier_turns_makes_a_row_of_each_answer(job: Job) -> None:
    use(job, STRIPS_THOUGHTS)
    first = f"{BEGIN}user\nHi{END}\n{BEGIN}assistant\n"
    assert loss_and_all_text(job, [TALK]) == [
        (f"<think>\n\n</think>\n\nHello.{END}", f"{first}<think>\n\n</think>\n\nHello.{END}\n"),
        (
            f"<think>\n\n</think>\n\nSee you.{END}",
            f"{first}Hello.{END}\n{BEGIN}user\nBye{END}\n{BEGIN}assistant\n<think>\n\n</think>\n\nSee you.{END}\n",
        ),
    ]


def test_reasoning_is_learnt_where_the_template_shows_it(job: Job) -> None:
    use(job, STRIPS_THOUGHTS)
    row = chat("2+2?", "4")
    row["messages"][1]["reasoning_content"] = "Two and two."
    assert loss_and_all_text(job, [row])[0][0] == f"<think>\nTwo and two.\n</think>\n\n4{END}"


def test_answer_that_the_generation_prompt_begins_with_a_think_block(job: Job) -> None:
    use(job, OPENS_THOUGHTS)
    (row,) = loss_and_all_text(job, [chat("Hi", "Hello.")])
    assert row == (
        f"\n</think>\n\nHello.{END}",
        f"{BEGIN}user\nHi{END}\n{BEGIN}assistant\n<think>\n\n</think>\n\nHello.{END}\n",
    )


def test_answer_that_ends_where_the_next_turn_begins(job: Job) -> None:
    """Between turns there is no end token that no served conversation has."""
    use(job, NEXT_TURN_ENDS)
    assert loss_and_all_text(job, [TALK]) == [
        (f"Hello.{END}See you.{END}", f"{END}\nHi{BEGIN}\nHello.{END}\nBye{BEGIN}\nSee you.{END}")
    ]


def test_thought_that_is_closed_is_no_end_of_an_answer(job: Job) -> None:
    """The template writes an empty thought, whose tokens are special, and no end: an answer has one all the same."""
    folder = job.volumes / "models" / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    for file in folder.glob("*token*"):
        file.unlink()  # links to what other tests have
    tokenizer.save_pretrained(folder)
    config = LlamaConfig.from_pretrained(folder)
    config.vocab_size = len(tokenizer)
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        (folder / name).unlink()
    LlamaForCausalLM(config).save_pretrained(folder)
    use(
        job,
        "{% for m in messages %}{% if m.role == 'user' %}<|im_end|>{{ m.content }}{% else %}<|im_start|>\n"
        "<think></think>\n{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>\n{% endif %}",
    )
    assert loss_and_all_text(job, [chat("Hi", "Hello.")])[0][0] == f"<think></think>\nHello.{END}"
    thought = "<think></think>\n"
    job = replace(job, name="talk")
    assert loss_and_all_text(job, [TALK])[0][0] == f"{thought}Hello.{END}{thought}See you.{END}"


def test_what_a_template_adds_after_the_end_of_an_answer_is_not_learnt(job: Job) -> None:
    """As Phi's: the end of the text follows whenever no answer is asked for, and no answer that is served has it."""
    use(job, f"{CHATML[: -len('{% endif %}')]}{{% else %}}{{{{ eos_token }}}}\n{BEGIN}{{% endif %}}")
    assert [learnt for learnt, _ in loss_and_all_text(job, [TALK])] == [f"Hello.{END}", f"See you.{END}"]


def test_answers_without_any_end_are_rows_of_their_own(job: Job) -> None:
    use(job, NO_END)
    assert loss_and_all_text(job, [TALK]) == [
        (f"Hello.\n{END}", f"user: Hi\nassistant: Hello.\n{END}"),
        (f"See you.\n{END}", f"user: Hi\nassistant: Hello.\nuser: Bye\nassistant: See you.\n{END}"),
    ]


CALLING = {
    "tools": [{"type": "function", "function": {"name": "add"}}],
    "messages": [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 1}'}}]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "Two."},
    ],
}


def test_tool_calls_are_learnt_where_the_template_shows_them(job: Job) -> None:
    use(job, WITH_TOOLS)
    ((learnt, read),) = loss_and_all_text(job, [CALLING])
    assert learnt == f'{{"name": "add", "arguments": {{"a": 1}}}}{END}Two.{END}'
    assert read.startswith('tools: [{"type": "function", "function": {"name": "add"}}]\n')


@pytest.mark.parametrize(
    ("template", "row", "what"),
    [
        (CHATML, {"messages": CALLING["messages"]}, 'the tool_calls beside "messages[1].content"'),
        (CHATML, {**chat("Hi", "Hello"), "tools": CALLING["tools"]}, '"tools"'),
        (
            CHATML,
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x", "thinking": "Hm."}]},
            'the reasoning beside "messages[1].content"',
        ),
    ],
)
def test_what_the_template_leaves_out_is_refused(job: Job, template: str, row: dict[str, Any], what: str) -> None:
    use(job, template)
    write_rows(job.volumes / job.dataset, [row])
    with pytest.raises(StageError, match="the model's chat template leaves out") as raised:
        job.prepare()
    assert f"line 1: the model's chat template leaves out {what}. " in raised.value.message


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.content }}", "its chat template is wrong: Unexpected end of template"),
        ("{{ messages[0].get('x') | length }}", "its chat template fails with TypeError: object of type 'NoneType'"),
        ("{{ nobody.knows }}", "its chat template is wrong: 'nobody' is undefined"),
        (
            "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
            "its chat template writes an answer otherwise than its own generation prompt begins it",
        ),
    ],
)
def test_template_that_fails_is_the_models_fault(job: Job, template: str, message: str) -> None:
    use(job, template)
    with pytest.raises(StageError) as raised:
        job.prepare()
    assert raised.value.reason == Reason.MODEL_INVALID
    assert f"model.uri pvc://models/tiny: {message}" in raised.value.message


@pytest.mark.parametrize(("names", "is_taken"), [(("default", "tool_use"), True), (("chat", "rag"), False)])
def test_template_called_default_is_used_of_several(job: Job, names: tuple[str, ...], *, is_taken: bool) -> None:
    folder = job.volumes / "models" / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {names[0]: CHATML, names[1]: "{{ 'another' }}"}
    for file in folder.iterdir():
        if file.name.startswith(("chat_template", "tokenizer")):
            file.unlink()  # links to what other tests have
    tokenizer.save_pretrained(folder)
    if not is_taken:
        with pytest.raises(StageError, match="has the chat templates chat, rag, and none is called default"):
            job.prepare()
        return
    assert loss_and_all_text(job, [chat("Hi", "Hello.")])[0][0] == f"Hello.{END}"
    assert job.prepared().manifest.chat_template == CHATML


def test_stop_tokens_of_the_generation_config_end_an_answer(job: Job) -> None:
    use(job, NEXT_TURN_ENDS.replace(END, "?").replace(BEGIN, END).replace("?", BEGIN))
    folder = job.volumes / "models" / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (folder / "generation_config.json").unlink()
    stops = [tokenizer.convert_tokens_to_ids(token) for token in (BEGIN, END)]
    GenerationConfig(eos_token_id=stops).save_pretrained(folder)
    assert loss_and_all_text(job, [TALK])[0][0] == f"Hello.{BEGIN}See you.{END}"


def test_sentencepiece_answer_has_the_tokens_that_it_has_in_the_whole_text(job: Job) -> None:
    """By itself it would begin with a space more than serving ever sees."""
    folder = job.volumes / "models" / "tiny"
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokens.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=[BEGIN, END], show_progress=False)
    tokens.train_from_iterator(["[INST] Hi [/INST] Hello. See you. Bye"] * 2, trainer)
    for file in folder.glob("*token*"):
        file.unlink()  # links to what other tests have
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token=END, pad_token=END, bos_token=BEGIN)
    tokenizer.save_pretrained(folder)
    use(
        job,
        "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>[INST] {{ m.content }} [/INST]{% else %} "
        "{{ m.content }}<|im_end|>{% endif %}{% endfor %}",
    )
    write_rows(job.volumes / job.dataset, [TALK])
    job.prepare()
    row = job.prepared().training[0]
    text = f"{BEGIN}[INST] Hi [/INST] Hello.{END}{BEGIN}[INST] Bye [/INST] See you.{END}"
    assert row.input_ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    asked = tokenizer(f"{BEGIN}[INST] Hi [/INST]", add_special_tokens=False)["input_ids"]
    assert row.loss_mask.tolist().index(1) == len(asked)
