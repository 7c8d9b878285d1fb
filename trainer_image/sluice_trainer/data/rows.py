"""JSONL rows: one JSON object a line, in one of five formats, checked line by line."""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sluice_api.finetunejob import BadRow, DatasetFormat
from sluice_api.reasons import Reason
from sluice_trainer.errors import StageError

MAX_LINE_BYTES = 32 * 1024 * 1024
MAX_ROWS_SHOWN = 5
"""Bad rows that a message names."""

FIELDS = {
    DatasetFormat.MESSAGES: ("messages",),
    DatasetFormat.ALPACA: ("instruction", "output"),
    DatasetFormat.PROMPT_COMPLETION: ("prompt", "completion"),
    DatasetFormat.PREFERENCE: ("prompt", "chosen", "rejected"),
    DatasetFormat.TEXT: ("text",),
}
_ALL_FORMATS = (
    '"messages"; "instruction" and "output"; "prompt" and "completion"; "prompt", "chosen" and "rejected"; or "text"'
)
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """A row of turns; the loss counts the assistant's."""

    turns: tuple[Turn, ...]
    context_turns: int = 0
    """Turns at the beginning that the loss does not count, whoever says them."""


@dataclass(frozen=True)
class Passage:
    """A row of plain text; the loss counts all of it."""

    text: str


Text = Conversation | Passage


@dataclass(frozen=True)
class Pair:
    """A row with a preferred and a rejected answer. Both conversations have the same turns before the answer."""

    chosen: Conversation
    rejected: Conversation


Row = Text | Pair


class BadRowError(Exception):
    """A row that can't be trained on."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


@dataclass
class Findings:
    """What was found while a dataset was read and tokenised."""

    dataset: str
    """The dataset's name in messages."""
    row_format: DatasetFormat
    """Auto until the first row has decided it."""
    refused: int = 0
    first_refused: list[tuple[int, BadRowError]] = field(default_factory=list)
    """Line numbers, counted from 1, and why; the first few."""
    overlong_rows: int = 0
    """Rows of more than maxSequenceLength tokens, whatever overlongRows does with them."""

    def refuse(self, line: int, error: BadRowError) -> None:
        """Note a row that can't be trained on."""
        self.refused += 1
        if len(self.first_refused) < MAX_ROWS_SHOWN:
            self.first_refused.append((line, error))

    def lines(self) -> tuple[str, ...]:
        """The first refused rows, for PrepareResult.refused."""
        return tuple(f"line {line}: {error.problem}"[:200] for line, error in self.first_refused)

    def check(self, on_bad_row: BadRow) -> None:
        """Fail unless bad rows are to be skipped.

        Raises:
            StageError: DatasetInvalid, naming up to five lines.
        """
        if self.refused == 0 or on_bad_row == BadRow.SKIP:
            return
        otherwise = "or set dataset.onBadRow: Skip."
        if self.refused == 1:
            line, error = self.first_refused[0]
            message = f"{self.dataset}, line {line}: {error.problem}. {error.remedy}, {otherwise}"
        else:
            shown = "\n".join(f"line {line}: {error.problem}. {error.remedy}." for line, error in self.first_refused)
            more = f"\nand {self.refused - MAX_ROWS_SHOWN} more." if self.refused > MAX_ROWS_SHOWN else ""
            problem = f"{self.dataset} has {self.refused} rows that can't be trained on."
            message = f"{problem} Mend them, {otherwise}\n{shown}{more}"
        raise StageError(Reason.DATASET_INVALID, message)


def read_rows(path: Path, findings: Findings) -> Iterator[tuple[int, Row]]:
    """Every good row with its line number, counted from 1; the others are noted in `findings`.

    Args:
        path: Without links, as dataset_file found it.

    Raises:
        StageError: DatasetInvalid for a file that is not JSONL, or of mixed formats (Auto decides by the first row).
    """
    decided_by = 0
    for number, line in _lines(path):
        try:
            fields = _json_object(line, number, findings.dataset)
            expected = findings.row_format
            found = expected if _has(fields, expected) else _format_of(fields, expected)
            if expected == DatasetFormat.AUTO:
                findings.row_format, decided_by = found, number
            elif found != expected:
                raise _mixed(findings.dataset, number, found, expected, decided_by)
            yield number, _PARSERS[found](fields)
        except BadRowError as error:
            findings.refuse(number, error)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        if Path(f"/proc/self/fd/{file.fileno()}").readlink() != path:  # it was checked where it leads, before
            raise StageError(
                Reason.DATASET_INVALID, f"{path.name} was replaced by a link while it was read. Put the file there."
            )
        number = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield number, line.rstrip()


def _json_object(line: bytes, number: int, dataset: str) -> dict[str, Any]:
    if len(line) >= MAX_LINE_BYTES:
        raise StageError(
            Reason.DATASET_INVALID,
            f"{dataset}, line {number} is longer than {MAX_LINE_BYTES // 2**20} MiB. "
            "Write one JSON object a line (JSONL).",
        )
    try:
        content = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRowError(f"not UTF-8 (byte {error.start + 1})", "Save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        if number == 1 and line.lstrip()[:1] == b"[":
            raise _is_array(dataset) from None
        raise BadRowError(f"not JSON: {error.msg} at column {error.colno}", "Write one JSON object a line") from None
    except RecursionError:
        raise BadRowError("not JSON: nested too deeply", "Write one JSON object a line") from None
    if isinstance(content, list) and number == 1:
        raise _is_array(dataset)
    if not isinstance(content, dict):
        raise BadRowError("not a JSON object", 'Write an object such as {"messages": [...]}')
    return content


def _is_array(dataset: str) -> StageError:
    return StageError(
        Reason.DATASET_INVALID,
        f"{dataset}, line 1: the file is one JSON array. Write one object a line: jq -c '.[]' array.json > rows.jsonl",
    )


def _has(fields: dict[str, Any], form: DatasetFormat) -> bool:
    return form in FIELDS and all(name in fields for name in FIELDS[form])


def _format_of(fields: dict[str, Any], expected: DatasetFormat) -> DatasetFormat:
    for form in FIELDS:
        if _has(fields, form):
            return form
    names = ", ".join(f'"{name}"' for name in list(fields)[:6]) or "no field"
    wanted = " and ".join(f'"{name}"' for name in FIELDS[expected]) if expected in FIELDS else _ALL_FORMATS
    raise BadRowError(f"the row has {names}, not {wanted}", f"Give the row {wanted}")


def _mixed(
    dataset: str, number: int, found: DatasetFormat, expected: DatasetFormat, decided_by: int
) -> BadRowError | StageError:
    """With a format that the user named, a row of another is a bad row; with Auto nobody can say which is meant."""
    if decided_by == 0:
        return BadRowError(f"the row is {found}, dataset.format is {expected}", f"Write it as {expected}")
    return StageError(
        Reason.DATASET_INVALID,
        f"{dataset}, line {number}: the row is {found}, but line {decided_by} is {expected}. Write all rows in one "
        f"format, or set dataset.format: {expected} and dataset.onBadRow: Skip.",
    )


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise BadRowError(f'"{name}" is {_kind(value)}, not a string', f'Make "{name}" a string')
    if not value.strip():
        raise BadRowError(f'"{name}" is empty', f'Fill in "{name}"')
    return value


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case list():
            return "an array"
        case dict():
            return "an object"
    return "a string"


def _messages(fields: dict[str, Any]) -> Row:
    turns = _turns(fields, "messages")
    last = turns[-1].role
    if last != "assistant":
        raise BadRowError(
            f'"messages" ends with the {last}; there is nothing to learn in this row'
            if not any(turn.role == "assistant" for turn in turns)
            else f'"messages" ends with the {last}, who gets no answer',
            "Add an assistant turn",
        )
    if turns[0].role == "assistant":
        raise BadRowError('"messages" begins with the assistant', "Put the user's turn before it")
    return Conversation(turns)


def _turns(fields: dict[str, Any], name: str) -> tuple[Turn, ...]:
    messages = fields[name]
    if not isinstance(messages, list) or not messages:
        kind = "empty" if messages == [] else f"{_kind(messages)}, not an array"
        raise BadRowError(f'"{name}" is {kind}', 'Write [{"role": ..., "content": ...}, ...]')
    return tuple(_turn(f'"{name}[{index}]', message) for index, message in enumerate(messages))


def _turn(where: str, message: object) -> Turn:
    if not isinstance(message, dict):
        raise BadRowError(f'{where}" is {_kind(message)}, not an object', 'Write {"role": ..., "content": ...}')
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise BadRowError(f'{where}.role" is {json.dumps(role)}', f"Use one of {', '.join(_ROLES)}")
    if not isinstance(content, str):
        raise BadRowError(f'{where}.content" is {_kind(content)}, not a string', "Make it a string")
    if not content.strip():
        raise BadRowError(f'{where}.content" is empty', "Fill it in")
    return Turn(role, content)


def _alpaca(fields: dict[str, Any]) -> Row:
    question = _text(fields, "instruction")
    more = fields.get("input") or ""
    if not isinstance(more, str):
        raise BadRowError(f'"input" is {_kind(more)}, not a string', 'Make "input" a string')
    if more.strip():
        question = f"{question}\n\n{more}"
    return Conversation((Turn("user", question), Turn("assistant", _text(fields, "output"))))


def _prompt_completion(fields: dict[str, Any]) -> Row:
    return Conversation((Turn("user", _text(fields, "prompt")), Turn("assistant", _text(fields, "completion"))))


def _preference(fields: dict[str, Any]) -> Row:
    """Each of the three is a text, or an array of messages."""
    asked, chosen, rejected = (
        (Turn(role, _text(fields, name)),) if isinstance(fields[name], str) else _turns(fields, name)
        for name, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant"))
    )
    if asked[-1].role != "user":
        raise BadRowError(f'"prompt" ends with the {asked[-1].role}', "End it with what the user says")
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if [turn.role for turn in answer] != ["assistant"]:
            raise BadRowError(
                f'"{name}" is not one turn of the assistant', 'Write the answer alone; what is before is "prompt"'
            )
    if chosen == rejected:
        raise BadRowError('"chosen" and "rejected" are the same', "Leave the row out: nothing can be preferred")
    return Pair(*(Conversation((*asked, *answer), context_turns=len(asked)) for answer in (chosen, rejected)))


def _passage(fields: dict[str, Any]) -> Row:
    return Passage(_text(fields, "text"))


_PARSERS = {
    DatasetFormat.MESSAGES: _messages,
    DatasetFormat.ALPACA: _alpaca,
    DatasetFormat.PROMPT_COMPLETION: _prompt_completion,
    DatasetFormat.PREFERENCE: _preference,
    DatasetFormat.TEXT: _passage,
}
