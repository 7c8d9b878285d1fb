"""In which language a text or a row is, where that is clear."""

import re
from collections.abc import Iterator
from functools import lru_cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from sluice_trainer.data.row import Passage, Row
from sluice_trainer.data.steps.step import turns_of

_CLEAR = 0.8
"""Probability from which a language is clear."""
_LEAST_BYTES = 24
"""Letters that a text needs, in UTF-8: five words of English, eight characters of Chinese."""
_WINDOW = 300
"""Characters that are looked at in each of three places: the beginning, the middle and the end."""
_NOT_LANGUAGE = re.compile(
    r"```[^`]*+(?:```)?|`[^`\n]{1,200}+`|https?://[^\s<>\"')\]]++|<[^<>\s]{1,40}+>|[\w.+-]{1,64}+@[\w.-]{1,255}+"
)
"""Code, addresses and tags, which look like English or like nothing."""


@lru_cache(maxsize=1)
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def known_languages() -> frozenset[str]:
    """The codes of ISO 639 that a text's language can be found as."""
    return frozenset(_identifier().labels) - {"zxx"}


def language_of(text: str) -> str | None:
    """The language of a text as a code of ISO 639, such as en; None for one that is short, mixed or not clear."""
    found = {language for part in _windows(text) if (language := _clear_language(part)) is not None}
    return found.pop() if len(found) == 1 else None


def row_language(row: Row) -> str | None:
    """The language of a row: of its text, or of what its users and assistants say.

    Many sets have system turns in English whatever is spoken, and what a tool returns is in no language.
    """
    if isinstance(row, Passage):
        return language_of(row.text)
    return language_of("\n".join(turn.content for turn in turns_of(row) if turn.role in ("user", "assistant")))


def _windows(text: str) -> Iterator[str]:
    if len(text) <= 3 * _WINDOW:
        yield from (text[begin : begin + _WINDOW] for begin in range(0, len(text), _WINDOW))
        return
    middle = (len(text) - _WINDOW) // 2
    yield from (text[:_WINDOW], text[middle : middle + _WINDOW], text[-_WINDOW:])


def _clear_language(text: str) -> str | None:
    said = _NOT_LANGUAGE.sub(" ", text)
    if len("".join(filter(str.isalpha, said)).encode()) < _LEAST_BYTES:
        return None
    language, probability = _identifier().classify(said)
    return language if probability >= _CLEAR and language != "zxx" else None
