"""Finds the words and phrases of a list in a text, as whole words: "class" has none of them because of its end."""

import codecs
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from sluice_trainer.data.steps.unicode_form import normalised
from sluice_trainer.data.steps.words import UNSPACED, blocks

_APOSTROPHES = str.maketrans("’‘ʼ", "'" * 3)
_PIECE = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]++|[^\w\s]")
"""A word, a sign, or a character of a script that writes no spaces. White space only separates them."""

WordList = Mapping[str, Sequence[tuple[str, ...]]]
"""Phrases in pieces, by their first."""


def word_list(phrases: Iterable[str]) -> WordList:
    """Make a list to look for. Blank phrases are none."""
    found: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for phrase in phrases:
        if pieces := _pieces(phrase):
            found[pieces[0]].append(tuple(pieces))
    return dict(found)


def phrases_in(content: bytes) -> tuple[str, ...]:
    """The phrases of a file, one on each line.

    Raises:
        ValueError: it has none, or something else; the message says what, and what to do.
    """
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        lines = content.decode(encoding).splitlines()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"line {line} is not {encoding.removesuffix('-sig').upper()}. Save it as UTF-8.") from None
    said = {number: phrase for number, line in enumerate(lines, 1) if (phrase := line.strip())}
    if not said:
        raise ValueError("it has no words. Write one on each line.")
    for sign in ",;\t":
        if len(said) > 1 and all(sign in phrase for phrase in said.values()):
            raise ValueError("each line has several cells, as a table has. Write one word or phrase on each line.")
    for number, phrase in said.items():
        if phrase.isascii() and not any(map(str.isalnum, phrase)):
            raise ValueError(f"line {number} is {phrase[:20]!r}, which is in nearly every text. Take it out.")
    return tuple(said.values())


def first_found(text: str, words: WordList) -> str | None:
    """The first phrase of a list that a text has, in either case, as the text's pieces."""
    for block in blocks(text):
        pieces = _pieces(block)
        if words.keys().isdisjoint(pieces):
            continue
        for at, piece in enumerate(pieces):
            for phrase in words.get(piece, ()):
                if tuple(pieces[at : at + len(phrase)]) == phrase:
                    return " ".join(phrase)
    return None


def _pieces(text: str) -> list[str]:
    return _PIECE.findall(normalised("NFC", text.casefold()).translate(_APOSTROPHES))
