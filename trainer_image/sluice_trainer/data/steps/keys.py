"""By what rows are compared that ask the same: two answers to one question are a conflict."""

from sluice_trainer.data.row import Conversation, Pair, Row, Turn
from sluice_trainer.data.steps.deduplicate import hash_of, tool_texts, turn_texts
from sluice_trainer.data.steps.words import words_of


def question_key(row: Row) -> int | None:
    """A hash of 64 bits of all that comes before the last answer, and of the tools on offer; None without a question.

    Case, punctuation and white space make no difference. What the assistant thinks is no part of it. An answer of
    weight 0 is none: it contradicts no other, because it is not learnt.
    """
    asked, answer = _halves(row)
    if answer is None or not isinstance(row, Conversation | Pair):
        return None
    if not any(words_of(turn.content) for turn in asked if turn.role != "system"):
        return None
    return hash_of(*tool_texts(row), *(text for turn in asked for text in turn_texts(turn, reasoning=False)))


def answer_key(row: Row) -> int | None:
    """A hash of 64 bits of the last answer, or of the preferred one of a pair; None for a row without one."""
    _, answer = _halves(row)
    return None if answer is None else hash_of(*turn_texts(answer, reasoning=False))


def _halves(row: Row) -> tuple[tuple[Turn, ...], Turn | None]:
    """The turns before the last answer, and that."""
    turns = row.chosen.turns if isinstance(row, Pair) else row.turns if isinstance(row, Conversation) else ()
    if not turns or turns[-1].role != "assistant" or not turns[-1].learnt:
        return turns, None
    return turns[:-1], turns[-1]
