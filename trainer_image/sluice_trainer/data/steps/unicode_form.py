"""Unicode's normal forms, in a time that grows with the text: Python's own is quadratic in marks on one letter."""

import re
import unicodedata
from itertools import pairwise
from typing import Literal

_MARKS_IN_A_ROW = 64
"""More do not occur in any language. Unicode's stream-safe format (UAX 15) allows 30."""
_MARK = "".join(re.escape(chr(code)) for code in range(0x300, 0x1F000) if unicodedata.combining(chr(code)))
_MANY_MARKS = re.compile(rf"(?<![{_MARK}])[{_MARK}]{{{_MARKS_IN_A_ROW + 1}}}")
_MARKS = re.compile(rf"[{_MARK}]{{1,{_MARKS_IN_A_ROW}}}+")


def normalised(form: Literal["NFC", "NFKC"], text: str) -> str:
    """The text in a normal form. Marks on one letter are sorted in groups of 64."""
    if text.isascii():
        return text
    if not _MANY_MARKS.search(text):
        return unicodedata.normalize(form, text)
    groups = (match.end() for match in _MARKS.finditer(text) if len(match[0]) == _MARKS_IN_A_ROW)
    cuts = [0, *groups, len(text)]
    return "".join(unicodedata.normalize(form, text[begin:end]) for begin, end in pairwise(cuts))
