"""A JSON array, or JSON objects that follow each other over any number of lines, value by value in a bounded memory."""

import codecs
import json
from collections.abc import Iterator
from typing import BinaryIO

from sluice_api.reasons import Reason
from sluice_trainer.data.read import jsons
from sluice_trainer.data.row import BadRowError
from sluice_trainer.errors import StageError

MAX_ROW_BYTES = 32 * 1024 * 1024
_BLOCK_BYTES = 256 * 1024
_WHITE = " \t\n\r"


class JsonStream:
    """Reads the values of a file one after another."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        """Begin at the stream's position.

        Args:
            stream: UTF-8; a byte order mark is skipped.
            name: Of the file, for messages.
        """
        self._stream = stream
        self._name = name
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self._scan = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = 0
        self._lines_before = self._columns_before = 0
        """Where what is in _text begins, counted from 0."""
        self._ended = False
        self._number = 0
        self.characters = 0
        """Of all values so far."""

    def values(self) -> Iterator[tuple[int, object]]:
        """Each value with its number, counted from 1; a BadRowError in the place of one that no tokenizer takes.

        Raises:
            StageError: DatasetInvalid, with line and column: what is no JSON can't be skipped, because nothing tells
                where the next value begins.
        """
        in_array = self._next_sign() == "["
        if in_array:
            self._at += 1
        while True:
            sign = self._next_sign()
            if in_array and sign == "]" and self._number == 0:
                break
            if not sign and not in_array:
                return
            self._number += 1
            if in_array and sign == "]":
                raise self._wrong("a comma with nothing after it", remedy="Remove the comma")
            yield self._number, self._value()
            if not in_array:
                continue
            sign = self._next_sign()
            if sign not in (",", "]"):
                raise self._wrong("Expecting ',' delimiter" if sign else "the array has no end")
            if sign == "]":
                break
            self._at += 1
        self._at += 1
        if self._next_sign():
            raise self._wrong("something follows the array's end")

    def _value(self) -> object:
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._more():
                    continue
                problem, remedy = jsons.why_not_json(error)
                raise self._wrong(problem.removesuffix(f" at column {error.colno}"), error.pos, remedy) from None
            except RecursionError:
                raise self._wrong("nested too deeply") from None
            except ValueError:  # Python's own: a number of more than 4,300 digits
                raise self._wrong("it has a number of thousands of digits, which must be a string") from None
            if end == len(self._text) and self._more():
                continue  # a number, which may go on
            text, self._at = self._text[self._at : end], end
            self.characters += len(text)
            try:
                jsons.require_shallow(value, text.count("[") + text.count("{"))
                if "\\u" in text:
                    jsons.require_unicode(value)
                elif not text.isascii():
                    _require_utf_8(text)
            except BadRowError as error:
                return error
            return value

    def _next_sign(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _WHITE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _more(self) -> bool:
        """Read on; False at the end. The longer a value, the larger the blocks: it is scanned again each time."""
        if self._ended:
            return False
        rest = self._text[self._at :]
        if len(rest) > MAX_ROW_BYTES:
            remedy = jsons.remedy_for_large(rest[:_BLOCK_BYTES])
            raise self._wrong(f"the row is longer than {MAX_ROW_BYTES // 2**20} MiB", remedy=remedy)
        self._lines_before, self._columns_before = self._position(self._at)
        block = self._stream.read(max(_BLOCK_BYTES, len(rest)))
        self._ended = not block
        self._text, self._at = rest + self._decode(block, final=self._ended), 0
        return True

    def _position(self, at: int) -> tuple[int, int]:
        """Line and column of a place in _text, counted from 0."""
        lines = self._text.count("\n", 0, at)
        column = at - self._text.rfind("\n", 0, at) - 1
        return self._lines_before + lines, column if lines else self._columns_before + at

    def _wrong(self, what: str, at: int | None = None, remedy: str = "") -> StageError:
        remedy = remedy or "Mend the file there; as long as it is no JSON, nothing tells where the next row begins"
        line, column = self._position(self._at if at is None else at)
        place = f"{self._name}, row {max(self._number, 1)} (line {line + 1}, column {column + 1})"
        return StageError(
            Reason.DATASET_INVALID,
            f"{place}: {what}. {remedy}.",
        )


def _require_utf_8(text: str) -> None:
    """Refuse a text with bytes that were no UTF-8: each is half of a surrogate pair in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRowError("not UTF-8", "Save the file as UTF-8") from None
