"""deduplicate and the keys of questions: which rows are the same, and how much memory it takes to know.

Kinds of public reports: all short texts were one (text-dedup 77, DataFlow 526, data-juicer 1051), all texts in Arabic
were (text-dedup 90), rows that a template made fell together (text-dedup 17).
"""

import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice_trainer.data.row import Conversation, Passage, Row
from sluice_trainer.data.steps.deduplicate import DropDuplicates, signature
from sluice_trainer.data.steps.keys import answer_key, question_key
from sluice_trainer.data.steps.seen import Hashes, Seen
from sluice_trainer.data.steps.signature import SLOTS, Signature
from sluice_trainer.data.steps.words import words_of
from tests.unit.trainer.steps.rows import chat, made_step, pair

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
OTHER_CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
LONG = " ".join(f"word{index}" for index in range(100))
NEARLY = LONG.replace("word50", "other")
HALF = " ".join(f"word{index}" for index in range(50, 150))


def kept(rows: list[Row], **deduplicate: str) -> list[int]:
    """The places of the rows that are new."""
    step = made_step(deduplicate=deduplicate)
    assert isinstance(step, DropDuplicates)
    seen = step.seen()
    return [index for index, row in enumerate(rows) if seen.is_new(step.signature(row))]


@pytest.mark.parametrize(
    ("name", "first", "second", "is_same"),
    [
        ("case, punctuation and white space", Passage("Hello, World!"), Passage(" hello\n(world) "), True),
        ("quotes and emphasis", Passage("It’s **so** `x`"), Passage("it's so x"), True),
        ("Unicode forms", Passage("e\u0301t"), Passage("ét"), True),
        ("white space in Chinese", Passage("你好，世界"), Passage("你好 世界"), True),
        ("another word", Passage("Hello world"), Passage("Hello word"), False),
        ("words that are run together", Passage("1 5"), Passage("15"), False),
        ("decimal points", Passage("1.5"), Passage("15"), False),
        ("signs", Passage("5 - 3"), Passage("5 * 3"), False),
        ("a minus", Passage("x is 5"), Passage("x is -5"), False),
        ("operators in a formula", Passage("x*y"), Passage("x/y"), False),
        ("comparisons", Passage("a < b"), Passage("a > b"), False),
        ("C and C#", Passage("in C"), Passage("in C#"), False),
        ("only punctuation", Passage("..."), Passage("?!"), False),
        ("emoji", Passage("\U0001f600"), Passage("\U0001f622"), False),
        ("marks of Hindi", Passage("किताब"), Passage("कताब"), False),
        ("a conversation", chat("Hi", "Hello"), chat("hi!", "hello."), True),
        ("what is said moves to another turn", chat("a b", "c"), chat("a", "b c"), False),
        ("a text and a conversation", chat("a", "b"), Passage("a b"), False),
        ("the roles", chat("a", "b"), Conversation(tuple(reversed(chat("b", "a").turns))), False),
        ("the system turn", chat("a", "b", system="c"), chat("a", "b"), False),
        ("what the assistant thinks", chat("a", "b", thinking="c"), chat("a", "b"), False),
        ("calls", chat("a", "", tool_calls=[CALL]), chat("a", "", tool_calls=[OTHER_CALL]), False),
        ("the tools", Conversation(chat("a", "b").turns, ({"name": "f"},)), chat("a", "b"), False),
        ("pairs", pair("a", "b", "c"), pair("A", "B", "C"), True),
        ("the rejected answer", pair("a", "b", "c"), pair("a", "b", "d"), False),
    ],
)
def test_rows_that_say_the_same_are_one(name: str, first: Row, second: Row, is_same: bool) -> None:
    for near in ({}, {"near": "0.9"}):
        assert kept([first, second], **near) == ([0] if is_same else [0, 1])


@pytest.mark.parametrize(
    ("name", "rows", "near", "expected"),
    [
        ("one word of a hundred", [Passage(LONG), Passage(NEARLY)], "0.8", [0]),
        ("... only if it is asked for", [Passage(LONG), Passage(NEARLY)], "0.99", [0, 1]),
        ("half of the words", [Passage(LONG), Passage(HALF)], "0.8", [0, 1]),
        ("short texts", [Passage(text) for text in ("cat", "dog", "cat!", "a b c d", "e f g h")], "0.8", [0, 1, 3, 4]),
        ("rows of a template", [Passage(f"Farm to Market Road {number} (FM {number}) is located in Lamar County.")
                                for number in range(1500, 1510)], "0.8", [*range(10)]),
        ("Arabic", [Passage("هذا نص طويل باللغة العربية عن القطط والكلاب"),
                    Passage("يعمل المهندس في مصنع كبير خارج المدينة كل يوم")], "0.8", [0, 1]),
        ("Chinese, but for one character",
         [Passage("今天天气很好我们一起去公园散步" * 3 + end) for end in "吧啊"], "0.7", [0]),
        ("Chinese",
         [Passage("今天天气很好我们一起去公园散步"), Passage("人工智能的主要应用领域有哪些呢")], "0.5", [0, 1]),
        ("a system turn that all rows have",
         [chat(f"question {n} of the user is {n}", f"the answer to it is {n * 7}", system=LONG) for n in range(5)],
         "0.8", [*range(5)]),
        ("calls that differ", [chat("Add the two numbers, please, and be quick", "", tool_calls=[call])
                               for call in (CALL, OTHER_CALL)], "0.8", [0, 1]),
        ("a dropped row is not remembered",
         [Passage(" ".join(f"word{i}" for i in range(begin, begin + 100))) for begin in (0, 8, 16)], "0.8", [0, 2]),
    ],
)  # fmt: skip
def test_rows_that_are_nearly_the_same(name: str, rows: list[Row], near: str, expected: list[int]) -> None:
    assert kept(rows, near=near) == expected


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5), max_size=3000))
@settings(max_examples=30)
def test_hashes_are_a_set(values: list[int]) -> None:
    hashes, known = Hashes(), set[int]()
    for value in values:
        assert (value in hashes) is (value in known)
        assert hashes.add(value) is (value not in known)
        known.add(value)
    assert len(hashes) == len(known)


@given(st.lists(st.integers(0, 30), max_size=100))
def test_seen_rows_are_a_set(values: list[int]) -> None:
    seen, known = Seen(None), set[int]()
    for value in values:
        row = signature(Passage(str(value)), near=False)
        assert seen.knows(row) is (value in known)
        assert seen.is_new(row) is (value not in known)
        known.add(value)


def test_near_duplicates_are_found_after_the_tables_have_grown() -> None:
    texts = [" ".join(f"{row}-{index}" for index in range(30)) for row in range(3000)]
    rows = [signature(Passage(text), near=True) for text in texts]
    seen = Seen(0.8)
    assert all(seen.is_new(row) for row in rows)
    assert not any(seen.is_new(signature(Passage(f"{text} end"), near=True)) for text in texts)


def test_signature_is_small_and_the_same_in_every_process() -> None:
    made = signature(Passage(LONG), near=True)
    assert len(made.sketch) == SLOTS
    assert pickle.loads(pickle.dumps(made)) == made
    assert signature(Passage("Hello, world"), near=True) == Signature(0x62AC806762D8A42F, b"")
    assert made.sketch[:8].hex() == "7b47b0bd23c247cf"


def test_memory_of_a_million_rows_is_what_the_docs_say() -> None:
    hashes = Hashes()
    for value in range(1, 20_000):
        hashes.add(value * 0x9E3779B97F4A7C15 % 2**64)
    assert hashes.nbytes / len(hashes) < 22


@pytest.mark.parametrize(
    ("name", "key", "first", "second", "is_same"),
    [
        ("the question", question_key, chat("Why?", "a"), chat("why", "b"), True),
        ("another question", question_key, chat("Why?", "a"), chat("How?", "a"), False),
        ("what was said before", question_key, chat("a", "b", "Why?", "c"), chat("d", "b", "Why?", "c"), False),
        ("the system turn", question_key, chat("a", "b", system="c"), chat("a", "b"), False),
        ("the tools", question_key, Conversation(chat("a", "b").turns, ({"name": "f"},)), chat("a", "b"), False),
        ("a pair asks as a conversation does", question_key, pair("Why?", "a", "b"), chat("Why?", "c"), True),
        ("the answer", answer_key, chat("a", "It is 5."), chat("b", "it is 5"), True),
        ("another answer", answer_key, chat("a", "It is 5."), chat("a", "It is -5."), False),
        ("thoughts are no answer", answer_key, chat("a", "5", thinking="b"), chat("a", "5", thinking="c"), True),
        ("another call", answer_key, chat("a", "", tool_calls=[CALL]), chat("a", "", tool_calls=[OTHER_CALL]), False),
        ("a pair's preferred answer", answer_key, pair("a", "b", "c"), chat("a", "b"), True),
    ],
)
def test_keys_of_questions_and_answers(
    name: str, key: Callable[[Row], int | None], first: Row, second: Row, is_same: bool
) -> None:
    assert key(first) is not None
    assert (key(first) == key(second)) is is_same


def test_what_asks_nothing_has_no_keys() -> None:
    assert (question_key(Passage("a")), answer_key(Passage("a"))) == (None, None)
    assert (question_key(chat("a")), answer_key(chat("a"))) == (None, None)
    assert question_key(chat("???", "a")) is None
    asked, answer = chat("Why?", "a").turns
    not_learnt = Conversation((asked, replace(answer, learnt=False)))
    assert (question_key(not_learnt), answer_key(not_learnt)) == (None, None)  # weight 0: it contradicts no answer


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't e-mail me!", "don t e mail me"),
        ("5-3=2, x*y/z 50% C# C++", "5 - 3=2 x * y / z 50 % c # c++"),
        ("हिन्दी भाषा", "हिन्दी भाषा"),
        ("你好,world", "你 好 world"),
        ("สวัสดี", "ส ว ั ส ด ี"),
        ("한국어 문장", "한국어 문장"),
        ("", ""),
    ],
)
def test_words(text: str, words: str) -> None:
    assert " ".join(words_of(text)) == words
