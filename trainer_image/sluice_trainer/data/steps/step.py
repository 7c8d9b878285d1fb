"""What a step is: a row in, the rows that it becomes out, or why it is dropped."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

from sluice_trainer.data.row import REASONING, Conversation, Pair, Passage, Row, Turn


class Dropped(Exception):
    """A step does not let a row pass."""

    def __init__(self, why: str, example: str) -> None:
        super().__init__(why)
        self.why = why
        """A category that few rows or many share, such as "too short"."""
        self.example = example
        """The text that shows it."""

    def __reduce__(self) -> tuple[type["Dropped"], tuple[str, str]]:
        return type(self), (self.why, self.example)


class RowStep(Protocol):
    """A step that looks at one row at a time. It keeps nothing of a row, so several processes can share the rows."""

    @property
    def name(self) -> str:
        """Its field in dataset.steps."""

    def apply(self, row: Row) -> list[Row]:
        """The rows that a row becomes.

        Raises:
            Dropped: it is dropped.
        """


def map_texts(row: Row, change: Callable[[str], str]) -> Row:
    """The row with all its texts changed. Roles, the tools and their calls stay, because their JSON must.

    A system turn that says nothing any more is left out, as it is when rows are read.
    """
    match row:
        case Passage(text):
            return Passage(change(text))
        case Conversation(turns):
            changed = (_map_turn(turn, change) for turn in turns)
            return replace(row, turns=tuple(turn for turn in changed if turn.role != "system" or turn.content.strip()))
        case Pair(chosen, rejected):
            sides = (map_texts(side, change) for side in (chosen, rejected))
            return Pair(*(side for side in sides if isinstance(side, Conversation)))


def _map_turn(turn: Turn, change: Callable[[str], str]) -> Turn:
    more = dict(turn.more)
    thought = next((more[name] for name in REASONING if name in more), None)
    if thought is not None:
        more |= dict.fromkeys((name for name in REASONING if name in more), change(thought))
    return replace(turn, content=change(turn.content), more=more)


def texts_of(row: Row) -> Iterator[str]:
    """All texts of a row: contents, and what the assistant thinks. What both sides of a pair have comes once."""
    match row:
        case Passage(text):
            yield text
        case Conversation() | Pair():
            for turn in turns_of(row):
                if (thought := reasoning_of(turn)) is not None:
                    yield thought
                yield turn.content


def example_of(row: Row) -> str:
    """A row's first text that says something, to show it by."""
    return next((text for text in texts_of(row) if text.strip()), "")


def turns_of(row: Conversation | Pair) -> tuple[Turn, ...]:
    """The turns of a row; of a pair those of the preferred side, then the rejected answer."""
    if isinstance(row, Conversation):
        return row.turns
    return (*row.chosen.turns, row.rejected.turns[-1])


def reasoning_of(turn: Turn) -> str | None:
    """What the assistant thinks before it answers. All spellings have the same text."""
    return next((str(turn.more[name]) for name in REASONING if name in turn.more), None)
