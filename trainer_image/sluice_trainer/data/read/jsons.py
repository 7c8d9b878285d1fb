"""One JSON value: its fields, or why it is no row. The same for a line, an element of an array and a cell."""

import json
import re
from collections.abc import Mapping
from typing import Any

from sluice_trainer.data.row import BadRowError

MAX_DEPTH = 100
"""Arrays and objects of a row in each other. Python sends values to another process, and writes them as JSON again, to
a depth of 500 or so, which depends on who asks; so this is the same whoever reads the row."""


def fields_of_line(line: bytes) -> Mapping[str, Any]:
    """Parse a line of JSONL.

    Raises:
        BadRowError: it is no JSON object, or no text that a tokenizer takes.
    """
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRowError(f"not UTF-8 (byte {error.start + 1})", "Save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        problem, remedy = why_not_json(error)
        raise BadRowError(f"not JSON: {problem}", remedy or "Write one JSON object a line") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:  # Python's own: a number of more than 4,300 digits
        raise BadRowError("it has a number of thousands of digits", "Write it as a string") from None
    require_shallow(value, line.count(b"[") + line.count(b"{"))
    if b"\\u" in line:
        require_unicode(value)
    return require_object(value)


_PYTHON_WORD = re.compile(r"None|True|False")
_PYTHON_DICTIONARY = re.compile(r"\{\s*'")
_COMMA_WITHOUT_NEXT = re.compile(r",\s*$")


def why_not_json(error: json.JSONDecodeError) -> tuple[str, str]:
    """What is wrong, in the words of the parser or in better ones, and what to do where that is known."""
    at, text = error.pos, error.doc
    place = f" at column {error.colno}"
    if text.startswith("\ufeff", at):
        return "a byte order mark, as files have it that were joined", r"Remove it: sed -i 's/\xef\xbb\xbf//' file"
    if _PYTHON_DICTIONARY.match(text, max(0, at - 1)):
        return "a dictionary as Python prints it", "Write it with json.dumps, not with str or print"
    if word := _PYTHON_WORD.match(text, at):
        instead = "null, or leave the field out" if word[0] == "None" else word[0].lower()
        return f"{word[0]} is of Python{place}", f"Write {instead}: json.dumps does so"
    if text.startswith(("}", "]"), at) and _COMMA_WITHOUT_NEXT.search(text, 0, at):
        return f"a comma with nothing after it{place}", "Remove the comma"
    if error.msg == "Extra data":
        remedy = "Write each object on a line of its own: jq -c . file > rows.jsonl"
        return f"something follows the first value{place}", remedy if text.lstrip().startswith("{") else ""
    return f"{error.msg}{place}", ""


_WRAPPED = re.compile(r'\s*\{[^\[]*?"([^"\[]+)"\s*:\s*\[\s*\{\s*"(?!role"|content"|from"|value")')


def remedy_for_large(text: str) -> str:
    """What to do about a value of many megabytes: most often it is an object that has all rows in it.

    Args:
        text: Its beginning.
    """
    if wrapped := _WRAPPED.match(text):
        return f"If its rows are in \"{wrapped[1]}\", take them out: jq -c '.{wrapped[1]}[]' file.json > rows.jsonl"
    return "Write one JSON object a line (JSONL)"


def require_object(value: object) -> Mapping[str, Any]:
    """The value, if it is an object.

    Raises:
        BadRowError: it is something else.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        raise BadRowError(
            "not a JSON object but a string with JSON inside", "Take it out: jq -c fromjson file > rows.jsonl"
        )
    if not isinstance(value, dict):
        raise BadRowError("not a JSON object", 'Write an object such as {"messages": [...]}')
    return value


def require_shallow(value: object, brackets: int, subject: str = "") -> None:
    """Refuse a value of more than MAX_DEPTH arrays and objects in each other.

    Args:
        value: The value.
        brackets: How many of its characters may open an array or an object. Most values have too few to be refused.
        subject: What the value is, for the message; empty: the row.

    Raises:
        BadRowError: it is deeper.
    """
    if brackets <= MAX_DEPTH:
        return
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [each for each in level if isinstance(each, dict | list)]
        if not level:
            return
        level = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
    raise _too_deep(subject)


def _too_deep(subject: str = "") -> BadRowError:
    return BadRowError(f"{subject}nested more than {MAX_DEPTH} deep", "Make it flatter")


def require_unicode(value: object) -> None:
    """Refuse half of a surrogate pair, which JSON can write and no text has: no tokenizer takes it.

    Raises:
        BadRowError: there is one.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise BadRowError(
            f"not Unicode: {half} is half of a surrogate pair", "Write the whole character, or remove the half"
        ) from None
