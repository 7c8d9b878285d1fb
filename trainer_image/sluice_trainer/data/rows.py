"""JSONL rows: one JSON object a line, checked line by line."""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sluice_api.dataset import BadRow, DatasetFormat
from sluice_api.reasons import Reason
from sluice_trainer.data.formats import format_of, parse
from sluice_trainer.data.row import BadRowError, Row, require_filled
from sluice_trainer.errors import StageError

MAX_LINE_BYTES = 32 * 1024 * 1024
MAX_ROWS_SHOWN = 5
"""Bad rows that a message names."""


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
            expected, place = findings.row_format, f"{findings.dataset}, line {number}"
            found = format_of(fields, expected, place)
            if expected == DatasetFormat.AUTO:
                findings.row_format, decided_by = found, number
            elif found != expected:
                raise _mixed(findings.dataset, number, found, expected, decided_by)
            row = parse(fields, found, place)
            require_filled(row)
            yield number, row
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
    except ValueError:  # Python's own: a number of more than 4,300 digits
        raise BadRowError("it has a number of thousands of digits", "Write it as a string") from None
    if b"\\u" in line:
        _check_unicode(content)
    if isinstance(content, list) and number == 1:
        raise _is_array(dataset)
    if not isinstance(content, dict):
        raise BadRowError("not a JSON object", 'Write an object such as {"messages": [...]}')
    return content


def _check_unicode(content: object) -> None:
    """Refuse half of a surrogate pair, which JSON can write and no text has: no tokenizer takes it."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise BadRowError(
            f"not Unicode: {half} is half of a surrogate pair", "Write the whole character, or remove the half"
        ) from None


def _is_array(dataset: str) -> StageError:
    return StageError(
        Reason.DATASET_INVALID,
        f"{dataset}, line 1: the file is one JSON array. Write one object a line: jq -c '.[]' array.json > rows.jsonl",
    )


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
