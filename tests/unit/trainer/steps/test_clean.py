"""clean: texts in, regular texts out.

Kinds of public reports: a joiner that Persian and emoji need was removed (kepano/defuddle 103, watermarks-remover 27,
OmniRoute 12186); "a<b and c>d" lost its middle (codsen/codsen 18, BasedHardware/omi 13525), as did <Alice> (Novel-
Grabber 73); Unicode's normal forms take quadratic time.
"""

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sluice_trainer.data.row import Conversation, Turn
from sluice_trainer.data.steps.unicode_form import normalised
from tests.unit.trainer.steps.rows import chat, cleaned, pair, step

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
ENGLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"


@pytest.mark.parametrize(
    ("name", "text", "fields", "expected"),
    [
        ("NFC writes a character one way", "e\u0301", {}, "é"),
        ("NFC leaves look-alikes", "ﬁ Ａ ①", {}, "ﬁ Ａ ①"),
        ("NFKC writes look-alikes plainly", "ﬁ Ａ ①", {"unicode": "NFKC"}, "fi A 1"),
        ("Keep leaves the Unicode form", "e\u0301", {"unicode": "Keep"}, "e\u0301"),
        ("a mark is composed over what was between", "e\u200b\u0301", {}, "é"),
        ("control characters", "a\x00b\x1b[0m\x7f\x9fc", {}, "ab[0mc"),
        ("tab and line feed stay", "a\tb\nc", {}, "a\tb\nc"),
        ("carriage returns", "a\r\nb\rc\n", {}, "a\nb\nc"),
        ("a page's end is a line's end, not nothing", "end\x0cnext\x85one\u2028two", {}, "end\nnext\none\ntwo"),
        ("byte order marks and zero-width spaces", "\ufeffa\u200bb\u2060c\ufeff", {}, "abc"),
        ("direction marks", "a\u202eb\u2066c\u200f", {}, "abc"),
        ("joiners between Latin letters", "pass\u200dword\u200c", {}, "password"),
        ("the joiner that Persian writes", "می\u200cخواهم", {}, "می\u200cخواهم"),
        ("the joiner that Hindi writes", "क्\u200dष", {}, "क्\u200dष"),
        ("the joiners of an emoji", FAMILY, {}, FAMILY),
        ("the tags of a flag", ENGLAND, {}, ENGLAND),
        ("tags that hide a text", "Hi\U000e0069\U000e0067\U000e006e", {}, "Hi"),
        ("Keep leaves control characters", "a\x00b", {"controlCharacters": "Keep"}, "a\x00b"),
        ("Trim", "  a  \n\tb \t\n\n\n\n c\u00a0\n", {}, "a\n\tb\n\n c"),
        ("Trim leaves indentation and columns", "def f():\n    return  1", {}, "def f():\n    return  1"),
        ("Collapse", "a  b \t c\n    d   e\n\tf", {"whitespace": "Collapse"}, "a b c\n    d e\n\tf"),
        ("Keep leaves white space", " a \n\n\n\nb ", {"whitespace": "Keep"}, " a \n\n\n\nb "),
        ("markup stays unless asked for", "<b>a</b> &amp; b", {}, "<b>a</b> &amp; b"),
    ],
)  # fmt: skip
def test_clean_makes_texts_regular(name: str, text: str, fields: dict[str, str], expected: str) -> None:
    assert cleaned(text, **fields) == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("tags", '<p class="x">a <b>b</b></p>', "a b"),
        ("a new line where a browser begins one", "a<br>b<div>c</div>d<li>e", "a\nb\nc\nd\ne"),
        ("cells of a table are apart", "<tr><td>a</td><td>b</td></tr>", "a b"),
        ("comments", "a<!-- <b> -->b", "ab"),
        ("a comment that is not closed stays", "a <!-- b", "a <!-- b"),
        ("scripts and styles with what is in them", "a<script>if (a<b) x()</SCRIPT ><style>p {}</style>b", "ab"),
        ("a script that is not closed loses its tag only", "a<script>b", "ab"),
        ("doctypes", "<!DOCTYPE html><?xml version='1.0'?>a", "a"),
        ("attributes without a value", "<input disabled value=3/>a", "a"),
        ("a tag over two lines", '<a\n href="b">c</a>', "c"),
        ("entities", "a &amp; b &lt;c&gt; &#228; &#xE4; &nbsp;&hellip;", "a & b <c> ä ä \u00a0…"),
        ("an entity is read once", "&amp;lt;", "&lt;"),
        ("addresses have no entities", "?a=1&copy=2&lt", "?a=1&copy=2&lt"),
        ("a number of many digits is no entity", f"&#{'1' * 5000};", f"&#{'1' * 5000};"),
        ("half of a surrogate pair does not come of one", "&#xD800;", "\ufffd"),
        ("comparisons", "if a<b and c>d, 1<2>0, x <y and z> w", "if a<b and c>d, 1<2>0, x <y and z> w"),
        ("generics and headers", "vector<int> f; #include <stdio.h>", "vector<int> f; #include <stdio.h>"),
        ("titles in brackets", "a line of <Alice>, <$2k", "a line of <Alice>, <$2k"),
        ("addresses in brackets", "<https://example.com/a> <a@b.example>", "<https://example.com/a> <a@b.example>"),
        ("tags that models write", "<think>a</think><tool_call>b</tool_call><|im_end|>",
         "<think>a</think><tool_call>b</tool_call><|im_end|>"),
        ("a > in an attribute leaves the tag", '<a title="x > y">b', '<a title="x > y">b'),
        ("code in a fence", "<b>a</b>\n```html\n<b>&amp;</b>\n```\n<i>b</i>", "a\n```html\n<b>&amp;</b>\n```\nb"),
        ("a fence that is not closed", "<b>a</b>\n```\n<b>", "a\n```\n<b>"),
        ("a longer fence has a shorter one in it", "````\n```\n<b>\n````\n<b>a", "````\n```\n<b>\n````\na"),
        ("code in single backticks", "The `<br>` tag.<br>", "The `<br>` tag."),
    ],
)  # fmt: skip
def test_markup_is_removed_and_nothing_else_in_brackets(name: str, text: str, expected: str) -> None:
    assert cleaned(text, markup="Remove") == expected


def test_all_texts_are_cleaned_and_what_must_stay_stays() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": " b "}}}
    thought = dict.fromkeys(("reasoning_content", "reasoning", "thinking"), " a ")
    row = chat(" b ", " c ", system=" d ", tool_calls=[call], **thought)
    (made,) = step(clean={}).apply(row)
    assert isinstance(made, Conversation)
    assert [turn.content for turn in made.turns] == ["d", "b", "c"]
    assert made.turns[-1].more == {"tool_calls": [call], **dict.fromkeys(thought, "a")}
    assert [turn.at for turn in made.turns] == [turn.at for turn in row.turns]
    assert step(clean={}).apply(pair(" a ", " b ", " c ")) == [pair("a", "b", "c")]


def test_system_turn_of_which_nothing_is_left_is_left_out() -> None:
    assert step(clean={"markup": "Remove"}).apply(chat("a", "b", system="<!-- todo -->")) == [chat("a", "b")]


@pytest.mark.parametrize("fields", [{}, {"unicode": "NFKC", "whitespace": "Collapse"}, {"unicode": "Keep"}], ids=str)
@given(st.text(st.sampled_from("ae\u0301\u0316 \t\n\r\x0b\x00\u00a0\u200b\u200c\u200d\ufeffक्ष\u2260=\u0338\ufe0f❤①ﬁ")))
@example("e\u200b\u0301\u200dक")
@example("क\u200b\u200d\u200dक")
def test_cleaning_twice_changes_nothing_more(fields: dict[str, str], text: str) -> None:
    once = cleaned(text, **fields)
    assert cleaned(once, **fields) == once


@given(st.lists(st.sampled_from(["<b>", "</b>", "a", " ", "\n", "<br/>", "1 < 2", "`<i>`", "```\n", "<think>"])))
def test_markup_that_is_removed_stays_removed(parts: list[str]) -> None:
    once = cleaned("".join(parts), markup="Remove")
    assert cleaned(once, markup="Remove") == once


@settings(max_examples=30)
@given(st.text())
def test_normal_form_is_unicodes_own(text: str) -> None:
    assert normalised("NFC", text) == unicodedata.normalize("NFC", text)
    assert normalised("NFKC", text) == unicodedata.normalize("NFKC", text)


def test_marks_are_sorted_in_groups_of_64() -> None:
    """Python's own normal form of the text below takes hours: its time is quadratic in marks on one letter."""
    made = normalised("NFC", "a" + "\u0301\u0316" * 1_000_000)
    assert len(made) == 2_000_000
    assert made.startswith("á\u0316\u0316")


def test_turn_keeps_whether_it_is_learnt() -> None:
    row = Conversation((Turn("user", " a "), Turn("assistant", " b ", learnt=False)))
    assert step(clean={}).apply(row) == [Conversation((Turn("user", "a"), Turn("assistant", "b", learnt=False)))]
