"""What a row of a dataset is, whatever file and format it came in: a conversation, a text, or a pair of answers."""

import json
import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Fields = Mapping[str, Any]
"""A row as its file has it."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Spellings of what the assistant thinks before it answers. Templates read one of them, so they get all."""


class BadRowError(Exception):
    """A row that can't be trained on."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return self.problem


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: str
    """system, user, assistant or tool."""
    content: str
    at: str = ""
    """Where its text is in the row, such as messages[1].content."""
    learnt: bool = True
    """Whether the loss counts it, if it is the assistant's."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """What the chat template gets besides: tool_calls, reasoning_content, ... Templates differ in what they show."""

    @property
    def message(self) -> dict[str, Any]:
        """The turn as chat templates take it."""
        return {"role": self.role, "content": self.content, **self.more}


@dataclass(frozen=True)
class Conversation:
    """A row of turns; the loss counts what the assistant says, unless a turn says otherwise."""

    turns: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    """The functions that the assistant may call, as the chat template takes them."""
    is_plain: bool = False
    """Whether it came as a prompt and its completion, both plain texts: without a chat template, one follows the
    other. Any other row says who speaks, which only a template can show."""


@dataclass(frozen=True)
class Passage:
    """A row of plain text; the loss counts all of it."""

    text: str


@dataclass(frozen=True, eq=False)
class Tokens:
    """A row that was tokenised elsewhere, for the same model."""

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    """The same ids, or NOT_LEARNT."""


NOT_LEARNT = -100
"""What transformers' losses leave out."""

Text = Conversation | Passage


@dataclass(frozen=True)
class Pair:
    """A row with a preferred and a rejected answer. Both conversations have the same turns before the answer."""

    chosen: Conversation
    rejected: Conversation


Row = Text | Pair
AnyRow = Row | Tokens


def require_filled(row: Row) -> None:
    """Refuse a row in which a text says nothing: it came so, or a step has left nothing of it.

    Raises:
        BadRowError: a text is blank where it may not be, or the two answers of a pair are the same.
    """
    match row:
        case Passage(text):
            _require_filled("text", text)
        case Conversation(turns):
            for turn in turns:
                if turn.role not in ("system", "tool") and "tool_calls" not in turn.more:
                    _require_filled(turn.at, turn.content)
        case Pair(chosen, rejected):
            require_filled(chosen)
            require_filled(rejected)
            if [turn.message for turn in chosen.turns] == [turn.message for turn in rejected.turns]:
                names = " and ".join(f'"{side.turns[-1].at}"' for side in (chosen, rejected))
                raise BadRowError(f"{names} are the same", "Leave the row out: nothing can be preferred")


def _require_filled(where: str, text: str) -> None:
    if not text.strip():
        raise BadRowError(f'"{where}" is empty', "Fill it in" if "[" in where else f'Fill in "{where}"')


def text_of(fields: Mapping[str, Any], name: str) -> str:
    """A field that must be a text. Whether it says something is for require_filled to look at.

    Raises:
        BadRowError: it is none.
    """
    value = fields.get(name)
    if isinstance(value, dict) and {"0", "1"} <= value.keys():
        raise BadRowError(
            f'"{name}" is an object with a value for each row',
            'Write rows, not columns: with pandas, to_json(path, orient="records", lines=True)',
        )
    if not isinstance(value, str):
        raise BadRowError(f'"{name}" is {kind_of(value)}, not a string', f'Make "{name}" a string')
    return value


def optional_text_of(fields: Mapping[str, Any], name: str) -> str:
    """A field that may be absent or null, as an empty text.

    Raises:
        BadRowError: it is something else than a text.
    """
    value = fields.get(name) or ""
    if not isinstance(value, str):
        raise BadRowError(f'"{name}" is {kind_of(value)}, not a string', f'Make "{name}" a string')
    return value


def shown(value: object) -> str:
    """A value as a message shows it; a table may hold some that JSON has not."""
    return json.dumps(value, default=repr)[:200]


def kind_of(value: object) -> str:
    """What a JSON value is, for a message."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case float() if math.isnan(value):
            return "NaN, which stands for nothing"
        case int() | float():
            return "a number"
        case list() | array():
            return "an array of numbers" if isinstance(value, array) else "an array"
        case dict():
            return "an object"
        case str():
            return "a string"
    return f"of the type {type(value).__name__}"
