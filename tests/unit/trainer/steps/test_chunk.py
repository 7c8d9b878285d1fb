"""chunk: where texts are cut, and that nothing is lost.

Kinds of public reports: an overlap that left no room went round for ever (litellm 38980, mempalace 2058), an overlap
was lost where a paragraph filled a chunk (langchainjs 11702).
"""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sluice_api.data_steps import Chunk
from sluice_trainer.data.row import Passage
from sluice_trainer.data.steps.chunk import ChunkTexts, Offsets
from tests.unit.trainer.steps.rows import chat, word_offsets


def letters(text: str) -> list[tuple[int, int]]:
    """A token is a character."""
    return [(index, index + 1) for index in range(len(text))]


def with_special_tokens(text: str) -> list[tuple[int, int]]:
    return [(0, 0), *word_offsets(text), (0, 0)]


def changing(text: str) -> list[tuple[int, int]]:
    """A token is two characters, but each of the last three is one: the end of a text has others than its middle."""
    pairs = [(at, at + 2) for at in range(0, max(0, len(text) - 4), 2)]
    return pairs + [(at, at + 1) for at in range(2 * len(pairs), len(text))]


def chunks(text: str, tokens: int = 16, overlap: int = 0, offsets: Offsets = letters) -> list[str]:
    made = ChunkTexts(Chunk(tokens=tokens, overlap=overlap), offsets).apply(Passage(text))
    assert all(isinstance(row, Passage) for row in made)
    return [row.text for row in made if isinstance(row, Passage)]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a short text stays", "a b c", ["a b c"]),
        ("as long as allowed", "a" * 16, ["a" * 16]),
        ("at the end of a paragraph in the second half", "One. Two.\n\nThree four", ["One. Two.\n\n", "Three four"]),
        ("a paragraph's early end", "A.\n\nIt is so. And on", ["A.\n\nIt is so.", " And on"]),
        ("at the end of a line", "one two\nthree four five", ["one two\n", "three four five"]),
        ("at the end of a sentence", "It rains. We stay here.", ["It rains.", " We stay here."]),
        ("... with quotes", 'He said "No." And he went', ['He said "No."', " And he went"]),
        ("at a word's end", "one two three four five", ["one two three", " four five"]),
        ("in a word", "a" * 20, ["a" * 16, "a" * 4]),
        ("Chinese", "今天天气很好。我们去公园吧！那里有很多人。",
         ["今天天气很好。我们去公园吧！", "那里有很多人。"]),
        ("white space alone is no row", f"a{' ' * 40}b", ["a", " " * 8 + "b"]),
    ],
)  # fmt: skip
def test_text_is_cut_at_the_best_place(name: str, text: str, expected: list[str]) -> None:
    assert chunks(text) == expected


@pytest.mark.parametrize(
    ("name", "text", "overlap", "expected"),
    [
        ("begins at a word", "one two three four five six", 8, ["one two three", " three four five", " five six"]),
        ("... or in one, if there is none", "a" * 20, 4, ["a" * 16, "a" * 8]),
        (
            "a paragraph that fills a chunk",
            "one two three.\n\nfour five",
            8,
            ["one two three.\n\n", "three.\n\nfour", "four five"],
        ),
    ],
)
def test_overlap(name: str, text: str, overlap: int, expected: list[str]) -> None:
    assert chunks(text, overlap=overlap) == expected


TEXTS = st.lists(
    st.sampled_from(["word", "longerword" * 3, " ", "  ", "\n", "\n\n", ".", "? ", "。", "字", "é", "\U0001f600"]),
    max_size=60,
).map("".join)
TOKENIZERS = st.sampled_from([letters, word_offsets, with_special_tokens, changing])


@given(TEXTS, st.integers(16, 40), TOKENIZERS)
@example("a" * 100, 16, changing)
def test_chunks_are_the_text_and_none_is_too_long(text: str, tokens: int, offsets: Offsets) -> None:
    step = ChunkTexts(Chunk(tokens=tokens), offsets)
    cut = [text[begin:end] for begin, end in step.spans(text)]
    assert "".join(cut) == text
    assert all(len(offsets(chunk)) <= tokens for chunk in cut)
    assert step.apply(Passage(text)) == [Passage(chunk) for chunk in cut if chunk.strip()] or not text.strip()


@given(TEXTS.filter(str.strip), st.integers(16, 40), st.data(), TOKENIZERS)
def test_each_chunk_begins_with_the_end_of_the_one_before(
    text: str, tokens: int, data: st.DataObject, offsets: Offsets
) -> None:
    overlap = data.draw(st.integers(1, tokens // 2))
    step = ChunkTexts(Chunk(tokens=tokens, overlap=overlap), offsets)
    spans = list(step.spans(text))
    assert spans[0][0] == 0
    assert spans[-1][1] == len(text)
    for (begin, end), (next_begin, next_end) in pairwise(spans):
        assert begin < next_begin <= end < next_end
        assert len(offsets(text[next_begin:next_end])) <= tokens


def test_other_rows_stay() -> None:
    row = chat("a " * 100, "b " * 100)
    assert ChunkTexts(Chunk(tokens=16), letters).apply(row) == [row]


def test_only_a_piece_of_a_long_text_becomes_tokens_at_once() -> None:
    seen: list[int] = []

    def offsets(text: str) -> list[tuple[int, int]]:
        seen.append(len(text))
        return word_offsets(text)

    text = "Some words of a sentence. " * 20_000
    made = ChunkTexts(Chunk(tokens=64), offsets).apply(Passage(text))
    assert len(made) > 100
    assert max(seen) < 2_000
    assert sum(seen) < 3 * len(text)
