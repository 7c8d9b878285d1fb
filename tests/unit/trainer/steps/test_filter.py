"""filter: which rows are dropped, and why.

Kinds of public reports: a list's word was found inside another (strinking/futaba 145, glin-profanity 45); blank lines
counted as repetition (datatrove 273); a page with markup was taken for Kirghiz (langid.py 9).
"""

import re
from typing import Any

import pytest

from sluice_api.data_steps import Filter
from sluice_trainer.data.row import Pair, Passage, Row
from sluice_trainer.data.steps.filter import FilterRows, repetition
from sluice_trainer.data.steps.languages import language_of
from sluice_trainer.data.steps.refusals import is_refusal
from sluice_trainer.data.steps.toxicity import toxicity
from sluice_trainer.data.steps.word_list import first_found, phrases_in, word_list
from sluice_trainer.data.steps.words import words_of
from tests.unit.trainer.steps.rows import chat, pair, why_dropped

CALL = {"type": "function", "function": {"name": "add", "arguments": {}}}
GERMAN = "Was ist die Hauptstadt von Frankreich und wie viele Menschen leben dort?"
SPAM = "Buy cheap pills now and " * 10


@pytest.mark.parametrize(
    ("name", "row", "filters", "why"),
    [
        ("no field drops none", chat("", ""), {}, None),
        ("all texts together", chat("abc", "de", reasoning="f"), {"minCharacters": 6}, None),
        ("too few characters", chat("abc", "de"), {"minCharacters": 6}, "too short"),
        ("as many as allowed", chat("abc", "de"), {"maxCharacters": 5}, None),
        ("too many", chat("abc", "def"), {"maxCharacters": 5}, "too long"),
        ("a pair's question counts once", pair("abc", "d", "e"), {"maxCharacters": 5}, None),
        ("an answer that says nothing", chat("Hi", " \n"), {"emptyAnswers": "Drop"}, "empty answer"),
        ("... in the middle", chat("Hi", "", "Hello?", "Yes"), {"emptyAnswers": "Drop"}, "empty answer"),
        ("... is kept as a bad row", chat("Hi", ""), {"emptyAnswers": "Keep"}, None),
        ("... but calls a tool", chat("1+1", "", tool_calls=[CALL]), {"emptyAnswers": "Drop"}, None),
        ("a question that says nothing is no answer", chat("", "Hi"), {"emptyAnswers": "Drop"}, None),
        ("a rejected answer that says nothing", pair("Hi", "Hello", ""), {"emptyAnswers": "Drop"}, "empty answer"),
        ("a text has no answer", Passage(" "), {"emptyAnswers": "Drop", "refusals": "Drop"}, None),
        ("a refusal", chat("Hi", "I'm sorry, but I can't help."), {"refusals": "Drop"}, "refusal"),
        ("a refusal that is not the last answer", chat("Hi", "I cannot help with that.", "Please!", "Fine, here it is"),
         {"refusals": "Drop"}, None),
        ("the user refuses", chat("I'm sorry, but I can't.", "Fine"), {"refusals": "Drop"}, None),
        ("a preferred refusal", pair("?", "I can't help with that.", "Sure"), {"refusals": "Drop"}, "refusal"),
        ("a rejected refusal is what the pair is for", pair("?", "Sure", "I can't help with that."),
         {"refusals": "Drop"}, None),
        ("a word of the list", chat("You", "FOOBAR!"), {"words": ["foobar"]}, "word foobar"),
        ("... in what the assistant thinks", chat("a", "b", thinking="foobar"), {"words": ["foobar"]}, "word foobar"),
        ("repetition", chat("Write.", SPAM), {"maxRepetition": "0.3"}, "repetition"),
        ("as much repetition as allowed", chat("Write.", SPAM), {"maxRepetition": "0.9"}, None),
        ("another language", chat(GERMAN, GERMAN), {"languages": ["en"]}, "language de"),
        ("one of the languages", chat(GERMAN, GERMAN), {"languages": ["en", "de"]}, None),
        ("a language that is not clear", chat("Hi", "Paris"), {"languages": ["en"]}, None),
        ("a system turn in another language", chat(GERMAN, GERMAN, system="You are a helpful and honest assistant."),
         {"languages": ["de"]}, None),
        ("an offence", chat("Hi", "You are a stupid idiot."), {"maxToxicity": "0.9"}, "toxic"),
        ("no offence", chat("Hi", "How do I kill this process?"), {"maxToxicity": "0.9"}, None),
    ],
)  # fmt: skip
def test_filter_drops_rows_by_what_they_say(name: str, row: Row, filters: dict[str, Any], why: str | None) -> None:
    assert why_dropped(row, **filters) == why


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't assist with that request.",
        "I’m sorry, but I can’t assist with that.",
        "I am very sorry but I cannot do that.",
        "Sorry, I can't provide that.",
        "  \"I'm sorry, but as an AI language model, I cannot browse the internet.",
        "**I'm sorry, but I'm not able to help with that.**",
        "I apologize, but I cannot fulfill this request.",
        "My apologies, but I'm unable to provide medical advice.",
        "Unfortunately, I am not able to access that file.",
        "As an AI language model, I don't have personal opinions.",
        "AS AN AI, I CANNOT HAVE PREFERENCES.",
        "As a large language model trained by OpenAI, I do not have access to news.",
        "I cannot provide instructions for that.",
        "I can't\nhelp with that.",
        "I'm unable to assist with creating such content.",
        "I won't be able to help you with that.",
        "I must respectfully decline.",
        "I don't feel comfortable writing this.",
        "很抱歉，我无法回答这个问题。",
        "Es tut mir leid, aber ich kann Ihnen dabei nicht helfen.",
        "Je suis désolé, mais je ne peux pas vous aider.",
        "Lo siento, pero no puedo ayudarte con eso.",
    ],
)
def test_refusal_is_found(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry to hear that you can't sleep. Try this:",
        "I'm sorry for your loss.",
        "I am sorry, but the shop is closed on Sundays.",
        "I apologize for the confusion. The answer is 4.",
        "Sorry for the delay! Here is the code.",
        "I can't help but notice that you like cats.",
        "I can't help smiling.",
        "I can't recommend this book enough!",
        "I cannot overstate how important sleep is.",
        "I can't give up on you.",
        "I can explain that.",
        "As an AI language model, I can explain how transformers work.",
        "As an air traffic controller, I do not have much time.",
        "Unfortunately, the file is missing. Create it first.",
        "Sure! First, I'm sorry, but I can't is a phrase that ...",
        "Es tut mir leid, dass du krank bist.",
        "",
    ],
)
def test_answer_that_refuses_nothing_is_none(answer: str) -> None:
    assert not is_refusal(answer)


@pytest.mark.parametrize(
    ("phrase", "text", "is_found"),
    [
        ("ass", "An assistant of the first class in Massachusetts", False),
        ("ass", "What an Ass.", True),
        ("new york", "From New\n York", True),
        ("new york", "From New-York", False),
        ("don't", "I DON’T", True),
        ("c++", "Write C++.", True),
        ("c++", "Write C.", False),
        ("f***", "f and more", False),
        ("f***", "what the f*** is", True),
        ("STRASSE", "Lange Straße", True),
        ("法轮", "修炼法轮功", True),
        ("#", "a # b", True),
        (" ", "a", False),
    ],
)
def test_word_of_a_list_is_found_as_a_whole_word(phrase: str, text: str, is_found: bool) -> None:
    assert (first_found(text, word_list([phrase])) is not None) is is_found


def test_long_list_of_words_is_looked_for_at_once() -> None:
    words = word_list([*(f"word{index}" for index in range(100_000)), "the end", "the endless"])
    assert first_found("of the endless word", words) == "the endless"


@pytest.mark.parametrize(
    ("name", "text", "share"),
    [
        ("fewer than twenty words", "a b c " * 6, 0.0),
        ("nothing twice", " ".join(map(str, range(100))), 0.0),
        ("the second half is the first", " ".join([*map(str, range(50)), *map(str, range(50))]), 0.5),
        ("one word", "no " * 100, 0.99),
        ("blank lines are no words", "\n\n\n".join(map(str, range(100))), 0.0),
        ("case and punctuation make no difference", "A, b! C " * 10 + "x " * 0, 0.9),
        ("Chinese", "今天天气很好我们去公园" * 4, 0.75),
        ("two words that often stand together", " ".join(f"of the {index}" for index in range(50)), 0.0),
    ],
)
def test_repetition_is_the_share_of_words_in_runs_that_were_there(name: str, text: str, share: float) -> None:
    assert repetition(words_of(text)) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the capital of France, and how many people live there?", "en"),
        (GERMAN, "de"),
        ("Quelle est la capitale de la France, et combien de gens y vivent ?", "fr"),
        ("¿Cuál es la capital de Francia y cuántas personas viven allí ahora mismo?", "es"),
        ("人工智能的主要应用领域有哪些，请详细说明。", "zh"),
        ("今日はとてもいい天気ですね、散歩に行きましょう。", "ja"),
        ("Какая столица Франции и сколько людей там живёт?", "ru"),
        ("Hello there", None),
        ("12345 67890 +-*/ 12345 67890 12345", None),
        ("Translate to German: I love my dog. Ich liebe meinen Hund sehr.", None),
        (f"{'The weather is nice today and we go for a walk. ' * 15}{GERMAN * 10}", None),
        (f"{GERMAN}\n```python\nfor index in range(10):\n    print(the_next_value(index))\n```", "de"),
        ("<p>" * 100 + "What is the capital of France, and how many people live there?", "en"),
        ("https://example.com/the/page/that/is/in/english", None),
    ],
)
def test_language_is_found_where_it_is_clear(text: str, language: str | None) -> None:
    assert language_of(text) == language


def test_toxicity_is_what_the_library_says() -> None:
    from profanity_check import predict_prob

    texts = ["You are a stupid idiot", "Hello dear friend", "What the fuck", "1 2 3"]
    assert [toxicity(text)[0] for text in texts] == pytest.approx(predict_prob(texts).tolist())


def test_offence_is_found_in_a_long_text() -> None:
    """The model looks at all words at once, so that most of a text hides the rest."""
    harmless = "The capital of France is Paris. " * 200
    probability, piece = toxicity(f"{harmless}Fuck you, you stupid asshole! Go to hell, bitch! {harmless}")
    assert probability > 0.9
    assert "asshole" in piece
    assert toxicity(harmless)[0] < 0.5
    assert toxicity("a" * 10_000)[0] < 0.5
    assert toxicity(" \n") == (0.0, "")


def test_example_of_a_dropped_row_is_the_text_that_shows_it() -> None:
    from sluice_trainer.data.steps.step import Dropped

    step = FilterRows(Filter.model_validate({"words": ["foobar"], "maxCharacters": 900}), word_list(["foobar"]))
    for row, example in ((chat("Hi", "a foobar"), "a foobar"), (Passage("a" * 1000), "a" * 1000)):
        with pytest.raises(Dropped) as dropped:
            step.apply(row)
        assert dropped.value.example == example


def test_pair_is_one_row() -> None:
    assert isinstance(pair("a", "b", "c"), Pair)
    assert why_dropped(pair("a", "b", "foobar"), words=["foobar"]) == "word foobar"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xef\xbb\xbffoo\r\n bar baz \n\n", ("foo", "bar baz")),
        ("\ufefffoo\nbär".encode("utf-16-le"), ("foo", "bär")),
        ("\ufefffoo".encode("utf-16-be"), ("foo",)),
        (b"hello, world\nfoo", ("hello, world", "foo")),
        ("\N{PILE OF POO}".encode(), ("\N{PILE OF POO}",)),
        (b"C#", ("C#",)),
        (b"foo\nb\xe4r", "line 2 is not UTF-8. Save it as UTF-8."),
        (b" \n", "it has no words."),
        (b"word,severity\nfoo,3\n", "each line has several cells"),
        (b"foo\n,\n", "line 2 is ',', which is in nearly every text."),
    ],
)
def test_file_of_words(content: bytes, expected: tuple[str, ...] | str) -> None:
    if isinstance(expected, tuple):
        assert phrases_in(content) == expected
        return
    with pytest.raises(ValueError, match=re.escape(expected)):
        phrases_in(content)
