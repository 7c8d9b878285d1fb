"""Rows that fit no format: what a user is told to write for them."""

from typing import Any

import pytest

from sluice_trainer.data.near_misses import fits_none, in_their_words
from sluice_trainer.data.row import BadRowError

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SHARED = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"conversation": TURNS, "id": 3}, "Set dataset.fields: {messages: conversation}"),
        ({"conversation": SHARED}, "Set dataset.fields: {conversations: conversation}"),
        ({"data": [{"q": "Hi"}, {"q": "Bye"}]}, "Take them out: jq -c '.data[]' file.json > rows.jsonl"),
        ({"Question": "Hi", "Answer": "Hello"}, "Set dataset.fields: {prompt: Question, completion: Answer}"),
        ({"input": "Hi", "output": "Hello"}, "Set dataset.fields: {prompt: input, completion: output}"),
        ({"id": "7", "asked": "Hi"}, "Say which of its fields is what, such as dataset.fields: {prompt: id, "),
        ({"act": 3, "body": "x"}, "Set dataset.fields: {text: body}, if all of it is to be learnt. Write rows with "),
        ({"n": 3}, 'Write rows with "messages", "conversations", "instruction" and "output", "prompt" and '),
        (
            {"What is the capital of Switzerland, and why is it none by law? ": "x", "": "y"},
            "The file seems to have no h",
        ),
        ({}, "Write rows with "),
    ],
)
def test_row_that_fits_no_format_has_a_remedy_of_its_own(fields: dict[str, Any], remedy: str) -> None:
    assert fits_none(fields).remedy.startswith(remedy)


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        ('"instruction" is a number', '"question" is a number'),
        ('"history[0]" is no pair', '"before[0]" is no pair'),
        ('"output" is empty', '"output" is empty'),
        ("the instruction is null", "the instruction is null"),
    ],
)
def test_error_names_fields_as_the_row_does(problem: str, told: str) -> None:
    names = {"instruction": "question", "history": "before"}
    assert in_their_words(BadRowError(problem, problem), names).remedy == told
    assert in_their_words(BadRowError(problem, problem), names).problem == told
