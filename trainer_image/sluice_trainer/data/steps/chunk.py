"""chunk: cuts texts into rows of so many tokens, at the ends of paragraphs, sentences or words where it can."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from sluice_api.data_steps import Chunk
from sluice_trainer.data.row import Passage, Row

Offsets = Callable[[str], list[tuple[int, int]]]
"""Where each token of a text begins and ends, in characters: a fast tokenizer's offset_mapping, special tokens too."""

_PLACE = re.compile(r"\s++|[。！？][。！？」』”’）]*+(?!\s)")
"""Where a text may be cut: in white space, or where a sentence of Chinese or Japanese ends."""
_SENTENCE_ENDS = re.compile(r"[.!?…。！？][\"'”’»)\]」』）]{0,4}$")
_NOT_SPACE = re.compile(r"\S")
_SPACE_BEFORE_WORD = re.compile(r"\s++(?=\S)")
_CHARACTERS_PER_TOKEN = 4
"""For the first guess how much of a text must become tokens to find out where a chunk ends."""


@dataclass(frozen=True)
class ChunkTexts:
    """The step `chunk`. Only a piece of a long text becomes tokens at once."""

    spec: Chunk
    offsets: Offsets
    name: str = "chunk"

    def apply(self, row: Row) -> list[Row]:
        """The chunks of a text; without an overlap they are the text if they are joined. Other rows stay."""
        if not isinstance(row, Passage):
            return [row]
        chunks = (row.text[begin:end] for begin, end in self.spans(row.text))
        return [Passage(chunk) for chunk in chunks if chunk.strip()] or [row]

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Where each chunk of a text begins and ends, in characters; one may be of white space alone."""
        whole = _Text(text, self.spec, lru_cache(maxsize=1)(self.offsets))  # a chunk's tokens are asked for twice
        begin = end = 0
        likely = self.spec.tokens * _CHARACTERS_PER_TOKEN
        while end < len(text):
            before, end = end, whole.end(begin, end, likely)
            if end == before:  # the overlap left no room
                begin, end = before, max(whole.end(before, before, likely), before + 1)
            yield begin, end
            likely = max(likely // 2, (end - begin) * 3 // 2)
            begin = whole.overlap_begins(begin, end)


@dataclass(frozen=True)
class _Text:
    """A text that is cut, from its beginning on."""

    text: str
    spec: Chunk
    offsets: Offsets

    def end(self, begin: int, before: int, likely: int) -> int:
        """Where the chunk ends that begins at `begin`; `before`, where the last one ended, if there is no room."""
        limit = self._limit(begin, likely)
        if limit == len(self.text):
            return limit
        end = _cut(self.text, before, limit)
        while end > before and (excess := len(self.offsets(self.text[begin:end])) - self.spec.tokens) > 0:
            end = _cut(self.text, before, end - excess)  # alone it has more tokens than as the beginning of a text
        return max(end, before)

    def overlap_begins(self, begin: int, end: int) -> int:
        """Where the chunk after one begins: at a word, so that it has at most `overlap` tokens of the one before."""
        if self.spec.overlap == 0 or end == len(self.text):
            return end
        spans = [span for span in self.offsets(self.text[begin:end]) if span[1] > span[0]]  # without special tokens
        if len(spans) < 2:
            return end
        at = begin + spans[-min(self.spec.overlap, len(spans) - 1)][0]
        if self.text[at - 1 : at].isspace() or (space := _SPACE_BEFORE_WORD.search(self.text, at, end)) is None:
            return at
        return space.end() if "\n" in space[0] else space.start()

    def _limit(self, begin: int, likely: int) -> int:
        """Up to which character as many tokens reach as a chunk may have."""
        tokens, length = self.spec.tokens, likely
        while True:
            spans = self.offsets(self.text[begin : begin + length])
            if len(spans) > tokens:
                return begin + spans[tokens - 1][1]
            if begin + length >= len(self.text):
                return len(self.text)
            length *= 2


def _cut(text: str, begin: int, limit: int) -> int:
    """The best place to cut in (begin, limit].

    A paragraph's end in the second half, else the last end of a line or a sentence, else of a word, else the limit.
    Line feeds stay with what is before them, a space with what is after it, as tokenizers have them.
    """
    paragraph = sentence = word = 0
    said = _NOT_SPACE.search(text, begin, limit)
    for match in _PLACE.finditer(text, said.end(), limit + 1) if said else ():
        lines = match[0].count("\n")
        goes_before = lines or not match[0].isspace()
        place = match.end() if goes_before and match.end() <= limit else match.start()
        if not begin < place <= limit:
            continue
        if lines > 1:
            paragraph = place
        if goes_before or _SENTENCE_ENDS.search(text, max(0, place - 6), place):
            sentence = place
        word = place
    if paragraph > (begin + limit) // 2:
        return paragraph
    return sentence or word or limit
