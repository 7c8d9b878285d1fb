"""A text as words, so that case, punctuation and white space make no difference.

Each character of a script that writes no spaces (Chinese, Japanese, Thai, ...) is a word of its own. Signs that change
what a text says are words too: 5 - 3, 5 * 3, -5, 5 % and C#.
"""

import re
import unicodedata
from collections.abc import Iterator

from sluice_trainer.data.steps.unicode_form import normalised

UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Japanese, Chinese
)
_BETWEEN = "`" + "".join(
    re.escape(chr(code)) for code in range(0x10000) if unicodedata.category(chr(code))[0] in "PZC" and code != 0xAD
)
"""Punctuation, white space and control characters. Letters, marks, numbers and symbols are what words have."""
_WORD = re.compile(
    rf"[{UNSPACED}]"
    rf"|[^{_BETWEEN}{UNSPACED}]++"
    r"|[-*/](?= ?\d)|(?<=\w)[*/](?=\w)"
    r"|(?<=\d)%|(?<=\w)\#"
)
_UNSPACED_WORD = re.compile(rf"[{UNSPACED}]")


_BLOCK_CHARACTERS = 1_000_000
_SPACE = re.compile(r"\s")


def blocks(text: str) -> Iterator[str]:
    """A text in blocks of a million characters, cut in white space: as a list, words take 20 times its memory."""
    at = 0
    while len(text) - at > _BLOCK_CHARACTERS:
        space = _SPACE.search(text, at + _BLOCK_CHARACTERS, at + 2 * _BLOCK_CHARACTERS)
        end = at + _BLOCK_CHARACTERS if space is None else space.start()
        yield text[at:end]
        at = end
    yield text[at:]


def words_of(text: str) -> list[str]:
    """The words of a text, in order."""
    return _WORD.findall(normalised("NFC", text.casefold()))


def is_unspaced(word: str) -> bool:
    """Whether it is one character of a script that writes no spaces."""
    return _UNSPACED_WORD.match(word) is not None
