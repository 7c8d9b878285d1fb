"""Rows and steps of the tests, written short."""

from typing import Any

from sluice_api.data_steps import Step
from sluice_trainer.data.row import Conversation, Pair, Passage, Row, Turn
from sluice_trainer.data.steps.deduplicate import DropDuplicates
from sluice_trainer.data.steps.make import row_steps
from sluice_trainer.data.steps.step import Dropped, RowStep


def chat(*said: str, system: str = "", **more: Any) -> Conversation:
    """What a user and the assistant say in turns; `more` is of the last turn."""
    roles = ("user", "assistant")
    turns = [Turn(roles[index % 2], text, f"messages[{index}].content") for index, text in enumerate(said)]
    last = turns[-1]
    turns[-1] = Turn(last.role, last.content, last.at, more=more)
    return Conversation((Turn("system", system, "system"), *turns) if system else tuple(turns))


def pair(question: str, chosen: str, rejected: str) -> Pair:
    """Two answers to a question."""
    return Pair(chat(question, chosen), chat(question, rejected))


def step(**fields: Any) -> RowStep:
    """The step of an item of dataset.steps."""
    made = made_step(**fields)
    assert not isinstance(made, DropDuplicates)
    return made


def made_step(**fields: Any) -> RowStep | DropDuplicates:
    return row_steps([Step.model_validate(fields)], word_offsets, {})[0]


def cleaned(text: str, **clean: str) -> str:
    return only_text(step(clean=clean).apply(Passage(text)))


def redacted(text: str, **redact: Any) -> str:
    return only_text(step(redact=redact).apply(Passage(text)))


def only_text(rows: list[Row]) -> str:
    (row,) = rows
    assert isinstance(row, Passage)
    return row.text


def why_dropped(row: Row, **filters: Any) -> str | None:
    """Why a filter drops a row, or None."""
    try:
        assert step(filter=filters).apply(row) == [row]
    except Dropped as dropped:
        return dropped.why
    return None


def word_offsets(text: str) -> list[tuple[int, int]]:
    """Tokens as byte-level tokenizers have them, in short: a word with the space before it, or one other character."""
    import re

    return [match.span() for match in re.finditer(r" ?\w{1,6}|\s|[^\w\s]", text)]


def run(steps: list[dict[str, Any]], rows: list[Row]) -> list[Row | str]:
    """What steps make of rows, one step after another: rows in their order, or why one was dropped."""
    made: list[Row | str] = list(rows)
    for each in row_steps([Step.model_validate(fields) for fields in steps], word_offsets, {}):
        seen = each.seen() if isinstance(each, DropDuplicates) else None
        before, made = made, []
        for row in before:
            if isinstance(row, str):
                made.append(row)
            elif isinstance(each, DropDuplicates):
                assert seen is not None
                made.append(row if seen.is_new(each.signature(row)) else "duplicate")
            else:
                try:
                    made += each.apply(row)
                except Dropped as dropped:
                    made.append(dropped.why)
    return made
