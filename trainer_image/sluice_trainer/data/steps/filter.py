"""filter: drops rows by what they say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sluice_api.data_steps import Filter
from sluice_trainer.data.row import Conversation, Pair, Row
from sluice_trainer.data.steps.languages import row_language
from sluice_trainer.data.steps.refusals import is_refusal
from sluice_trainer.data.steps.step import Dropped, example_of, texts_of, turns_of
from sluice_trainer.data.steps.toxicity import toxicity
from sluice_trainer.data.steps.word_list import WordList, first_found
from sluice_trainer.data.steps.words import blocks, is_unspaced, words_of

_LEAST_WORDS = 20
"""Texts of fewer are not looked at for repetition."""
_RUN, _UNSPACED_RUN = 3, 6
"""Words of a run that may be repeated; characters of one, in scripts that write no spaces."""


@dataclass(frozen=True)
class FilterRows:
    """The step `filter`."""

    spec: Filter
    words: WordList
    """Of spec.words and of the file spec.words_from."""
    name: str = "filter"

    def apply(self, row: Row) -> list[Row]:
        """The row.

        Raises:
            Dropped: one of the rules drops it; the first in the order of the fields, but what is slow comes last.
        """
        for rule in _RULES:
            rule(row, self)
        return [row]


def _empty_answer(row: Row, step: FilterRows) -> None:
    if step.spec.empty_answers == "Drop" and isinstance(row, Conversation | Pair):
        for turn in turns_of(row):
            if turn.role == "assistant" and not turn.content.strip() and "tool_calls" not in turn.more:
                raise Dropped("empty answer", example_of(row))


def _length(row: Row, step: FilterRows) -> None:
    least, most = step.spec.min_characters, step.spec.max_characters
    characters = sum(map(len, texts_of(row)))
    if least is not None and characters < least:
        raise Dropped("too short", "\n".join(texts_of(row)))
    if most is not None and characters > most:
        raise Dropped("too long", next(iter(texts_of(row))))


def _refusal(row: Row, step: FilterRows) -> None:
    if step.spec.refusals == "Drop" and isinstance(row, Conversation | Pair):
        turns = row.turns if isinstance(row, Conversation) else row.chosen.turns
        answer = next((turn.content for turn in reversed(turns) if turn.role == "assistant"), "")
        if is_refusal(answer):
            raise Dropped("refusal", answer.strip())


def _word(row: Row, step: FilterRows) -> None:
    if step.words:
        for text in texts_of(row):
            if (found := first_found(text, step.words)) is not None:
                raise Dropped(f"word {found}", text)


def _repetition(row: Row, step: FilterRows) -> None:
    if step.spec.max_repetition is not None:
        for text in texts_of(row):
            if repetition(words_of(next(blocks(text)))) > float(step.spec.max_repetition):
                raise Dropped("repetition", text)


def _language(row: Row, step: FilterRows) -> None:
    if step.spec.languages:
        language = row_language(row)
        if language is not None and language not in step.spec.languages:
            raise Dropped(f"language {language}", example_of(row))


def _offence(row: Row, step: FilterRows) -> None:
    if step.spec.max_toxicity is not None:
        for text in texts_of(row):
            probability, piece = toxicity(text)
            if probability > float(step.spec.max_toxicity):
                raise Dropped("toxic", piece)


_RULES: Sequence[Callable[[Row, FilterRows], None]] = (
    _empty_answer, _length, _refusal, _word, _repetition, _language, _offence,
)  # fmt: skip


def repetition(words: Sequence[str]) -> float:
    """The share of a text's words that are in runs which it has already had, from 0 to 1; 0 below 20 words.

    A run is three words. Where most are single characters, of Chinese for example, it is six: three words or so.
    """
    if len(words) < _LEAST_WORDS:
        return 0.0
    length = _UNSPACED_RUN if sum(map(is_unspaced, words)) * 2 > len(words) else _RUN
    seen: set[tuple[str, ...]] = set()
    repeated = counted_to = 0
    for begin in range(len(words) - length + 1):
        run = tuple(words[begin : begin + length])
        if run in seen:
            repeated += begin + length - max(begin, counted_to)
            counted_to = begin + length
        seen.add(run)
    return repeated / len(words)
