"""All steps together: their order, hostile texts, processes, and a text of which nothing is left."""

import pickle
import time
from contextlib import suppress
from itertools import permutations
from typing import Any

import pytest

from sluice_api.data_steps import Chunk, Step
from sluice_api.reasons import Reason
from sluice_trainer.data.row import BadRowError, Pair, Passage, Row, require_filled
from sluice_trainer.data.steps.chunk import ChunkTexts
from sluice_trainer.data.steps.deduplicate import DropDuplicates, signature
from sluice_trainer.data.steps.keys import answer_key, question_key
from sluice_trainer.data.steps.make import row_steps
from sluice_trainer.data.steps.step import Dropped, RowStep
from sluice_trainer.errors import StageError
from tests.unit.trainer.steps.rows import chat, made_step, pair, run, step, word_offsets

ALL: list[dict[str, Any]] = [
    {"clean": {"unicode": "NFKC", "whitespace": "Collapse", "markup": "Remove"}},
    {"filter": {"minCharacters": 1, "languages": ["en"], "maxRepetition": "1", "emptyAnswers": "Drop",
                "refusals": "Drop", "words": ["no such word"], "maxToxicity": "1"}},
    {"deduplicate": {"near": "0.8"}},
    {"redact": {}},
    {"chunk": {"tokens": 16, "overlap": 4}},
]  # fmt: skip
CALL = {"type": "function", "function": {"name": "add", "arguments": {}}}


@pytest.mark.parametrize(
    ("name", "steps", "rows", "expected"),
    [
        ("what redact makes equal is a duplicate after it", [{"redact": {}}, {"deduplicate": {}}],
         [Passage("I am a@b.example"), Passage("I am c@d.example")], [Passage("I am [EMAIL]"), "duplicate"]),
        ("... and not before it", [{"deduplicate": {}}, {"redact": {}}],
         [Passage("I am a@b.example"), Passage("I am c@d.example")], [Passage("I am [EMAIL]")] * 2),
        ("an answer that clean empties is dropped after it",
         [{"clean": {"markup": "Remove"}}, {"filter": {"emptyAnswers": "Drop"}}],
         [chat("Hi", "<br>")], ["empty answer"]),
        ("chunks that say the same are duplicates", [{"chunk": {"tokens": 16}}, {"deduplicate": {}}],
         [Passage("a b c d e f g h. " * 4)], [Passage("a b c d e f g h."), "duplicate", "duplicate", "duplicate"]),
        ("no step", [], [Passage("a")], [Passage("a")]),
    ],
)  # fmt: skip
def test_steps_follow_one_another(
    name: str, steps: list[dict[str, Any]], rows: list[Row], expected: list[Row | str]
) -> None:
    made = run(steps, rows)
    assert [Passage(row.text.strip()) if isinstance(row, Passage) else row for row in made] == expected


def test_steps_work_in_every_order() -> None:
    rows: list[Row] = [
            chat("What is the <b>capital</b> of France?", "Paris, says a@b.example."), Passage("Some words. " * 30),
            pair("Who?", "I.", "You."), chat("Hi", "")]  # fmt: skip
    fast = [ALL[0], {"filter": {"minCharacters": 1, "emptyAnswers": "Drop", "refusals": "Drop"}}, *ALL[2:]]
    for steps in permutations(fast):
        kinds = {type(row) for row in run(list(steps), rows)}
        assert kinds >= {Passage, Pair, str}


def test_steps_and_what_they_raise_go_to_other_processes() -> None:
    for fields in ALL[:4]:
        made = made_step(**fields)
        assert pickle.loads(pickle.dumps(made)) == made
    dropped = pickle.loads(pickle.dumps(Dropped("too short", "a")))
    assert (dropped.why, dropped.example) == ("too short", "a")


def test_words_of_a_file_are_added_to_those_of_the_spec() -> None:
    fields = {"words": ["foo"], "wordsFrom": "pvc://lists/words.txt"}
    (made,) = row_steps(
        [Step.model_validate({"filter": fields})], word_offsets, {"pvc://lists/words.txt": ["bar", "", "two words"]}
    )
    assert not isinstance(made, DropDuplicates)
    for text, why in (("a Foo", "word foo"), ("a bar", "word bar"), ("two  words", "word two words")):
        with pytest.raises(Dropped, match=why):
            made.apply(Passage(text))


def test_language_that_is_never_found_is_refused() -> None:
    with pytest.raises(
        StageError, match=r"dataset\.steps\[0\]\.filter\.languages: no .* in eng, xx\. .* en, "
    ) as raised:
        step(filter={"languages": ["xx", "en", "eng"]})
    assert raised.value.reason == Reason.DATASET_INVALID


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (Passage(" \n"), '"text" is empty'),
        (chat("Hi", " "), '"messages[1].content" is empty'),
        (chat("", "Hi"), '"messages[0].content" is empty'),
        (pair("Hi", "a", ""), '"messages[1].content" is empty'),
        (pair("Hi", "a", "a"), '"messages[1].content" and "messages[1].content" are the same'),
        (chat("Hi", "", tool_calls=[CALL]), None),
        (chat("Hi", "a"), None),
        (pair("Hi", "a", "b"), None),
    ],
)
def test_row_of_which_nothing_is_left_is_a_bad_row(row: Row, problem: str | None) -> None:
    if problem is None:
        require_filled(row)
        return
    with pytest.raises(BadRowError) as raised:
        require_filled(row)
    assert raised.value.problem == problem


HOSTILE = (
    "a", "a ", " ", "\n", " \n", "\t", "\u0301", "\u0316\u0301", "\u200d", "\U000e0041", "\ufdfa", "<", "<a ",
    '<a b="', "<a b='", "<a b", "<a b ", "<a b=c ", "<p>", "<!--", "-->", "<script>", "</script>", "<!DOCTYPE ",
    "&", "&#", "&#1", "&amp", "`", "``", "```\n", "````", "I'm sorry, but ", "I can't ", ".", "。", '?"', "no ", "今天",
    "字 ", "-1", "*", "5 - ", "😀",
)  # fmt: skip


@pytest.mark.parametrize("part", HOSTILE, ids=repr)
def test_hostile_text_takes_a_time_that_grows_with_its_length(part: str) -> None:
    """A quadratic way would take minutes for what ends here in a moment."""
    assert cpu_seconds(step(**ALL[0]), Passage((part * 400_000)[:400_000])) < 20
    text = (part * 20_000)[:20_000]
    row = chat(text, text)
    assert cpu_seconds(step(**ALL[1]), row) < 20
    assert cpu_seconds(ChunkTexts(Chunk(tokens=16, overlap=4), _four_characters), Passage(text)) < 20
    began = time.process_time()
    signature(row, near=True)
    question_key(row)
    answer_key(row)
    assert time.process_time() - began < 20


def cpu_seconds(each: RowStep, row: Row) -> float:
    began = time.process_time()
    with suppress(Dropped):
        each.apply(row)
    return time.process_time() - began


def _four_characters(text: str) -> list[tuple[int, int]]:
    return [(at, min(len(text), at + 4)) for at in range(0, len(text), 4)]
