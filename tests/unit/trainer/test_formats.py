"""Rows as people have them, in each format and spelling: what is learnt of them, or why they are refused.

Most of these inputs are public reports about other projects (../shared/reference/reports.md says which).
"""

import json
from typing import Any

import pytest

from sluice_api.dataset import DatasetFormat
from sluice_trainer.data.formats import format_of, parse
from sluice_trainer.data.row import BadRowError, Conversation, Pair
from sluice_trainer.errors import StageError

CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
PART = {"type": "text", "text": "a"}
USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def read(fields: dict[str, Any], expected: DatasetFormat = DatasetFormat.AUTO) -> Any:
    return parse(fields, format_of(fields, expected, "rows.jsonl, line 1"), "rows.jsonl, line 1")


def said(row: Conversation) -> list[str]:
    """Each turn as role: text, with a star where it is learnt."""
    return [
        f"{turn.role}: {turn.content}{'*' if turn.learnt and turn.role == 'assistant' else ''}" for turn in row.turns
    ]


@pytest.mark.parametrize(
    ("name", "fields", "turns"),
    [
        ("messages", {"messages": [USER, ANSWER]}, ["user: Hi", "assistant: Hello*"]),
        (
            "developer is the newer word for system",
            {"messages": [{"role": "developer", "content": "Be brief."}, USER, ANSWER]},
            ["system: Be brief.", "user: Hi", "assistant: Hello*"],
        ),
        (
            "a system turn that says nothing is none",
            {"messages": [{"role": "system", "content": ""}, USER, ANSWER]},
            ["user: Hi", "assistant: Hello*"],
        ),
        (
            "content in parts, joined as vLLM joins them",
            {"messages": [{"role": "user", "content": [PART, {**PART, "text": "b"}]}, ANSWER]},
            ["user: a\nb", "assistant: Hello*"],
        ),
        (
            "a turn of weight 0 is read, not learnt",
            {"messages": [USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}]},
            ["user: Hi", "assistant: Hello", "user: Hi", "assistant: Hello*"],
        ),
        (
            "... as axolotl writes it",
            {"messages": [USER, {**ANSWER, "train": False}, USER, {**ANSWER, "train": True}]},
            ["user: Hi", "assistant: Hello", "user: Hi", "assistant: Hello*"],
        ),
        (
            "null content beside tool calls",
            {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                          {"role": "tool", "content": "2", "tool_call_id": "1"}, ANSWER]},
            ["user: Hi", "assistant: *", "tool: 2", "assistant: Hello*"],
        ),
        (
            "ShareGPT",
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
            ["user: Hi", "assistant: Hello*"],
        ),
        (
            "ShareGPT with a system text beside it, and tools",
            {"system": "Be brief.", "conversations": [
                {"from": "human", "value": "1+1?"},
                {"from": "function_call", "value": '{"name": "add", "arguments": {}}'},
                {"from": "observation", "value": "2"}, {"from": "gpt", "value": "Two"}]},
            ["system: Be brief.", "user: 1+1?", "assistant: *", "tool: 2", "assistant: Two*"],
        ),
        (
            "ShareGPT's field with OpenAI's messages",
            {"conversations": [USER, ANSWER]},
            ["user: Hi", "assistant: Hello*"],
        ),
        (
            "Alpaca",
            {"instruction": "Add", "input": "1 2", "output": "3"},
            ["user: Add\n\n1 2", "assistant: 3*"],
        ),
        (
            "Alpaca's system and history",
            {"instruction": "And its capital?", "input": "", "output": "Bern.", "system": "Answer as a pirate.",
             "history": [["Name a country.", "Switzerland."]]},
            ["system: Answer as a pirate.", "user: Name a country.", "assistant: Switzerland.*",
             "user: And its capital?", "assistant: Bern.*"],
        ),
        ("prompt and completion", {"prompt": "1+1", "completion": "2"}, ["user: 1+1", "assistant: 2*"]),
        (
            "prompt and completion as turns",
            {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]},
            ["user: Hi", "assistant: Hello", "user: Hi", "assistant: Hello*"],
        ),
        (
            "columns that a table has and this row does not",
            {"messages": None, "instruction": "Hi", "output": "Hello", "input": None, "text": None},
            ["user: Hi", "assistant: Hello*"],
        ),
    ],
)  # fmt: skip
def test_row_in_a_format_of_conversations(name: str, fields: dict[str, Any], turns: list[str]) -> None:
    assert said(read(fields)) == turns, name


ASKED = [USER]
YES, NO = [{"role": "assistant", "content": "Yes"}], [{"role": "assistant", "content": "No"}]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("texts", {"prompt": "Hi", "chosen": "Yes", "rejected": "No"}),
        ("turns", {"prompt": ASKED, "chosen": YES, "rejected": NO}),
        ("the prompt in both answers", {"chosen": [*ASKED, *YES], "rejected": [*ASKED, *NO]}),
        (
            "the prompt in both answers and by itself",
            {"prompt": "Hi", "chosen": [*ASKED, *YES], "rejected": [*ASKED, *NO]},
        ),
        (
            "as OpenAI writes it",
            {"input": {"messages": ASKED, "tools": []}, "preferred_output": YES, "non_preferred_output": NO},
        ),
    ],
)
def test_row_in_a_format_of_preferences(name: str, fields: dict[str, Any]) -> None:
    pair = read(fields)
    assert isinstance(pair, Pair)
    assert said(pair.chosen) == ["user: Hi", "assistant: Yes*"], name
    assert said(pair.rejected) == ["user: Hi", "assistant: No*"], name


def test_tool_calls_have_their_arguments_as_objects() -> None:
    """OpenAI writes texts, and vLLM gives objects to templates, which would print a text in quotes."""
    for arguments in ('{"a": 1}', {"a": 1}):
        call = {"id": "1", "function": {"name": "add", "arguments": arguments}}
        turns = read({"messages": [USER, {"role": "assistant", "tool_calls": [call]}]}).turns
        assert turns[1].more["tool_calls"] == [
            {"type": "function", "id": "1", "function": {"name": "add", "arguments": {"a": 1}}}
        ]


ADD = {"type": "function", "function": {"name": "add", "description": "Adds."}}


@pytest.mark.parametrize(
    "tools",
    [
        [ADD],
        json.dumps([ADD]),
        [json.dumps(ADD)],
        [ADD["function"]],  # as xLAM, ToolACE and LLaMA-Factory write it
        [{"type": "function", "name": "add", "description": "Adds."}],  # as OpenAI's Responses do
    ],
)
def test_tools_of_a_row_are_as_templates_get_them_when_the_model_serves(tools: Any) -> None:
    assert read({"messages": [USER, ANSWER], "tools": tools}).tools == (ADD,)


def test_turns_may_be_written_as_columns() -> None:
    """datasets makes them of a Sequence of objects; a turn has no field that is null."""
    columns = {"role": ["user", "assistant"], "content": ["Hi", "Hello"], "weight": [None, 1]}
    assert read({"messages": columns}) == read({"messages": [USER, ANSWER]})


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_given_to_the_template_in_all_spellings(name: str) -> None:
    row = read({"messages": [USER, {**ANSWER, name: "Hm."}]})
    assert row.turns[1].more == {"reasoning_content": "Hm.", "reasoning": "Hm.", "thinking": "Hm."}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, 'every answer of "messages" has the weight 0'),
        ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, '"messages[1].weight" is 0.5'),
        (
            {"messages": [USER, {"role": "tool", "content": "2"}, ANSWER]},
            '"messages[1].content" is the result of a tool',
        ),
        ({"messages": [USER, {"role": "bot", "content": "x"}]}, '"messages[1].role" is "bot"'),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]},
            'is an image ("image_url"), and only text',
        ),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, '"messages[1].content" is null, not a string'),
        ({"messages": [USER, {**ANSWER, "function_call": {"name": "f"}}]}, "is of an older API"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]}, '"messages[1].tool_calls[0]" is no call'),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]},
            '"messages[1].tool_calls[0].function.arguments" is not JSON',
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "parameters": {}}}]}]},
            '"messages[1].tool_calls[0].function" has "parameters", and no "arguments"',
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"type": "x", "name": "f", "input": {}}]}]},
            '"messages[1].tool_calls[0].function" has "input", and no "arguments"',
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "x"},
                    {"from": "function_call", "value": '{"name": "f", "a": 1}'},
                ]
            },
            '"conversations[1].value[0].function" has "a", and no "arguments"',
        ),
        ({"messages": [USER, ANSWER], "tools": [{"type": "function"}]}, '"tools[0]" has no "function" and no "name"'),
        ({"messages": [USER, ANSWER], "tools": [3]}, '"tools[0]" is a number, not an object'),
        ({"messages": str([USER, ANSWER])}, '"messages" is not JSON: a dictionary as Python prints it'),
        ({"messages": {"role": ["user"], "content": []}}, '"messages" is an object, not an array'),
        ({"messages": [USER, {**ANSWER, "reasoning_content": 3}]}, '"messages[1].reasoning_content" is a number'),
        ({"messages": [USER, ANSWER], "tools": "x"}, '"tools" is not JSON'),
        ({"conversations": [{"from": "alien", "value": "x"}]}, '"conversations[0].from" is "alien"'),
        ({"instruction": "a", "output": "b", "history": [["a"]]}, '"history[0]" is no question with its answer'),
        ({"instruction": "a", "output": "b", "system": 3}, '"system" is a number, not a string'),
        ({"prompt": "Hi", "completion": [USER]}, '"completion" ends with the user'),
        ({"prompt": [ANSWER], "completion": "x"}, '"prompt" ends with the assistant'),
        ({"chosen": YES, "rejected": NO}, "there is no prompt before the two answers"),
        ({"prompt": "Hi", "chosen": "Yes", "rejected": "Yes"}, '"chosen" and "rejected" are the same'),
        ({"asked": "a", "told": "b"}, 'the row has "asked", "told", and no format has such fields'),
    ],
)
def test_row_that_can_not_be_read_is_refused_by_its_own_field(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadRowError) as raised:
        read(fields)
    assert problem in raised.value.problem


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"prompt": "Hi", "messages": [USER, ANSWER], "chosen": [USER, *YES], "rejected": [USER, *NO]},
            "the row can be read as Messages or as Preference. Set dataset.format",
        ),
        (
            {"instruction": "a", "output": "b", "text": "a b"},
            "the row can be read as Alpaca or as Text. Set dataset.format",
        ),
        ({"prompt": "Hi", "completion": "Get lost.", "label": False}, '"label" says whether an answer is good (KTO)'),
        ({"prompt": "Hi", "completion": "Get lost.", "label": "False"}, '"label" says whether an answer is good (KTO)'),
        ({"messages": [USER, ANSWER], "label": True}, '"label" says whether an answer is good (KTO)'),
        (
            {"instruction": "Hi", "output": "Get lost.", "kto_tag": False},
            '"kto_tag" says whether an answer is good (KTO)',
        ),
    ],
)
def test_rows_that_would_be_learnt_falsely_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(StageError) as raised:
        read(fields)
    assert raised.value.message.startswith(f"rows.jsonl, line 1: {message}")


def test_row_of_several_formats_is_read_as_the_job_says() -> None:
    row = read({"instruction": "a", "output": "b", "text": "a b"}, DatasetFormat.ALPACA)
    assert said(row) == ["user: a", "assistant: b*"]


VALUES: list[Any] = [None, True, 3, 2.5, "", "x", [], [[]], [None], {}, {"a": 1}, [{"role": 3}], [{"from": {}}]]
OF_ROWS = (
    "messages", "conversations", "instruction", "output", "prompt", "completion", "chosen", "rejected", "text", "input",
    "preferred_output", "non_preferred_output", "tools", "history", "system", "label",
)  # fmt: skip
OF_TURNS = ("role", "content", "tool_calls", "weight", "train", "reasoning_content", "function_call", "name")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"instruction": "a", "output": "b"},
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"input": {"messages": ASKED}, "preferred_output": YES, "non_preferred_output": NO},
        {"text": "a"},
    ],
)
def test_row_with_any_value_anywhere_is_read_or_refused(row: dict[str, Any]) -> None:
    """No shape of a value crashes a reader."""
    changed = [{**row, name: value} for name in OF_ROWS for value in VALUES]
    for name, turns in row.items():
        if isinstance(turns, list):
            last = {**turns[-1]}
            changed += [{**row, name: [*turns[:-1], {**last, key: v}]} for key in OF_TURNS for v in VALUES]
    refused = 0
    for fields in changed:
        try:
            read(fields)
        except (BadRowError, StageError):
            refused += 1
    assert 0 < refused < len(changed)
