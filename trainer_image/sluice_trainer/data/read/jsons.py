"""One JSON value: its fields, or why it is no row. The same for a line, an element of an array and a cell."""

import json
from collections.abc import Mapping
from typing import Any

from sluice_trainer.data.row import BadRowError


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
        raise BadRowError(f"not JSON: {error.msg} at column {error.colno}", "Write one JSON object a line") from None
    except RecursionError:
        raise BadRowError("not JSON: nested too deeply", "Write one JSON object a line") from None
    except ValueError:  # Python's own: a number of more than 4,300 digits
        raise BadRowError("it has a number of thousands of digits", "Write it as a string") from None
    if b"\\u" in line:
        require_unicode(value)
    return require_object(value)


def require_object(value: object) -> Mapping[str, Any]:
    """The value, if it is an object.

    Raises:
        BadRowError: it is something else.
    """
    if not isinstance(value, dict):
        raise BadRowError("not a JSON object", 'Write an object such as {"messages": [...]}')
    return value


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
