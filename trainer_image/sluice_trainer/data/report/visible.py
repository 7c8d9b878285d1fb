"""Texts of rows, for eyes: what can't be seen, or changes how the rest is seen, is written as its code."""

import re
import unicodedata

_HIDDEN = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and line feed: a terminal would obey them
    "\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # invisible, or turning the text
    "\ud800-\udfff"  # halves of surrogate pairs
    "\U000e0000-\U000e007f"  # tags
    "]"
)


def visible(text: str) -> str:
    """The text with each hidden character written as its code, such as [U+202E]; tabs and line feeds stay.

    A zero-width joiner stays where it joins, as in emoji and in scripts of India.
    """
    return _HIDDEN.sub(_code, text)


def _code(found: "re.Match[str]") -> str:
    character, text, at = found[0], found.string, found.start()
    if character in "\u200c\u200d" and 0 < at < len(text) - 1 and _joins(text[at - 1]) and _joins(text[at + 1]):
        return character
    return f"[U+{ord(character):04X}]"


def _joins(character: str) -> bool:
    """Whether a character is one that joiners stand beside: a letter beyond Latin, a mark, a symbol such as emoji."""
    return ord(character) > 0x5FF and unicodedata.category(character)[0] in "LMS"
