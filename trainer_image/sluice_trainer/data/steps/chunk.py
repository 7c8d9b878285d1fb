"""chunk: cuts texts into rows of so many tokens, at the ends of paragraphs, sentences or words where it can."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sluice_api.data_steps import Chunk
from sluice_trainer.data.row import Passage, Row

Offsets = Callable[[str], list[tuple[int, int]]]
"""Where each token of a text begins and ends, in characters: a fast tokenizer's offset_mapping, special tokens too."""

_PLACE = re.compile(r"\s++|[。！？][。！？」』”’）]*+(?!\s)")
"""Where a text may be cut: in white space, or where a sentence of Chinese or Japanese ends."""
_SENTENCE_ENDS = re.compile(r"[.!?…:;。！？][\"'”’»)\]」』）]{0,4}$")
_NOT_SPACE = re.compile(r"\S")
_SPACE_BEFORE_WORD = re.compile(r"\s++(?=\S)")
_CHARACTERS_PER_TOKEN = 8
"""Of the piece that is tokenised to find out where a chunk must end; more, if that has too few tokens."""


@dataclass(frozen=True)
class ChunkTexts:
    """The step `chunk`. Its memory and time grow with the text: only a piece of it at once becomes tokens."""

    spec: Chunk
    offsets: Offsets
    name: str = "chunk"

    def apply(self, row: Row) -> list[Row]:
        """The chunks of a text; without an overlap they are the text if they are joined. Other rows stay."""
        if not isinstance(row, Passage):
            return [row]
        chunks = (row.text[begin:end] for begin, end in self._spans(row.text))
        return [Passage(chunk) for chunk in chunks if chunk.strip()] or [row]

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Where each chunk begins and ends."""
        begin = end = 0
        while end < len(text):
            before, end = end, self._end(text, begin, end)
            if end == before:  # the overlap left no room
                begin, end = before, max(self._end(text, before, before), before + 1)
            yield begin, end
            begin = self._overlap_begins(text, begin, end)

    def _end(self, text: str, begin: int, before: int) -> int:
        """Where the chunk ends that begins at `begin`; `before`, where the last one ended, if there is no room."""
        limit = self._most(text, begin)
        if limit == len(text):
            return limit
        end = _cut(text, before, limit)
        while end > before and (excess := len(self.offsets(text[begin:end])) - self.spec.tokens) > 0:
            end = _cut(text, before, end - excess)  # alone it has more tokens than as the beginning of a text
        return max(end, before)

    def _most(self, text: str, begin: int) -> int:
        """Up to which character the tokens of a chunk reach."""
        length = self.spec.tokens * _CHARACTERS_PER_TOKEN
        while True:
            spans = self.offsets(text[begin : begin + length])
            if begin + length >= len(text) and len(spans) <= self.spec.tokens:
                return len(text)
            if len(spans) > self.spec.tokens:
                return begin + spans[self.spec.tokens - 1][1]
            length *= 2

    def _overlap_begins(self, text: str, begin: int, end: int) -> int:
        """Where the chunk after one begins: at a word, so that it has at most `overlap` tokens of the one before."""
        if self.spec.overlap == 0 or end == len(text):
            return end
        spans = [span for span in self.offsets(text[begin:end]) if span[1] > span[0]]  # without special tokens
        if len(spans) < 2:
            return end
        at = begin + spans[-min(self.spec.overlap, len(spans) - 1)][0]
        if text[at - 1 : at].isspace() or (space := _SPACE_BEFORE_WORD.search(text, at, end)) is None:
            return at
        return space.end() if "\n" in space[0] else space.start()


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
