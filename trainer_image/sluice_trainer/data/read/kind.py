"""How a file holds rows, by its content."""

import codecs
import json
import re

from sluice_api.dataset import FileFormat
from sluice_api.reasons import Reason
from sluice_trainer.data.read.row_file import RowFile
from sluice_trainer.data.read.tables import separator_of
from sluice_trainer.errors import StageError

LOOKED_AT_BYTES = 256 * 1024
"""The beginning of a file by which its format is told."""

_PARQUET, _ARROW_FILE, _ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NAME = re.compile(r"\.(csv|tsv|tab|jsonl?|ndjson)(\.\w+)?$", re.IGNORECASE)
_SAY = "Set dataset.fileFormat to what it is."
_PAGE = (
    "a page of HTML, as servers answer that ask for a login, or have no such file",
    "Download the file itself; look at its address and credentials",
)
_PICKLE = ("a Python pickle, which is never opened", "Write JSONL or Parquet")
_UNPACK = "Unpack it, or pack it with gzip or zstd"
_NO_ROWS = (
    (b"PK\x03\x04", "a zip archive, or a workbook", "Unpack it, or save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a workbook, or a document", "Save the sheet as CSV"),
    (b"BZh", "packed with bzip2", _UNPACK),
    (b"\xfd7zXZ\0", "packed with xz", _UNPACK),
    (b"\x04\x22\x4d\x18", "packed with lz4", _UNPACK),
    (b"\x1f\x8b", "packed twice", "Unpack it once"),
    (b"\x28\xb5\x2f\xfd", "packed twice", "Unpack it once"),
    (b"7z\xbc\xaf", "a 7z archive", "Unpack it"),
    (b"Rar!", "a RAR archive", "Unpack it"),
    *((b"\x80" + version, *_PICKLE) for version in (b"\2", b"\3", b"\4\x95", b"\5\x95")),
    (b"SQLite format 3\0", "a database of SQLite", "Export its table as CSV"),
    (b"Obj\1", "an Avro file", "Write JSONL or Parquet"),
    (b"\x93NUMPY", "an array of NumPy", "Write JSONL or Parquet"),
    (b"\x89HDF", "an HDF5 file", "Write JSONL or Parquet"),
    (b"%PDF-", "a PDF", "Write its text as JSONL, with a field text"),
)
"""How files begin that have no rows, or not as text: what each is, and what to do."""
_TAR, _TAR_AT = b"ustar", 257
_SOMETHING_ELSE = (
    (b"<!doctype html", *_PAGE),
    (b"<html", *_PAGE),
    (b"<?xml", "XML, which stores answer with in the place of a file", "Look at what it says"),
    (
        b"version https://git-lfs",
        "a pointer of Git LFS, and not the file that it stands for",
        "Get that with git lfs pull",
    ),
)
"""How a text begins that is no file of rows, what it is, and what to do."""


def file_format_of(file: RowFile, start: bytes, said: FileFormat) -> FileFormat:
    """The format of a file.

    Args:
        file: The file.
        start: Its first LOOKED_AT_BYTES, unpacked.
        said: What the job says, or Auto.

    Raises:
        StageError: DatasetInvalid: it can't be told, or it is another than what the job says.
    """
    _refuse_no_rows(file, start)
    binary = _binary_format(start)
    if said in (FileFormat.PARQUET, FileFormat.ARROW) or binary:
        if binary is None or said not in (binary, FileFormat.AUTO):
            raise _invalid(file, f"it is {'a' if binary else 'no'} {binary or said} file", _SAY)
        return binary
    if start.startswith(_UTF_16) or b"\0" in start[:4096]:
        raise _invalid(file, "it is no UTF-8 text", "Save it as UTF-8")
    text = start.removeprefix(codecs.BOM_UTF8).lstrip()
    for beginning, what, remedy in _SOMETHING_ELSE:
        if text[: len(beginning)].lower() == beginning:
            raise StageError(Reason.DATASET_INVALID, f"{file.name} is {what}. {remedy}.")
    return _text_format(file, text) if said is FileFormat.AUTO else said


def is_parquet(start: bytes) -> bool:
    """Whether a file is Parquet."""
    return start.startswith(_PARQUET)


def _refuse_no_rows(file: RowFile, start: bytes) -> None:
    if start[_TAR_AT:].startswith(_TAR):
        raise StageError(Reason.DATASET_INVALID, f"{file.name} is a tar archive. Unpack it.")
    for beginning, what, remedy in _NO_ROWS:
        if start.startswith(beginning):
            raise StageError(Reason.DATASET_INVALID, f"{file.name} is {what}. {remedy}.")


def is_arrow_file(start: bytes) -> bool:
    """Whether Arrow data is a file with an index, and not a stream of messages."""
    return start.startswith(_ARROW_FILE)


def _text_format(file: RowFile, text: bytes) -> FileFormat:
    if not text:
        return FileFormat.JSONL
    if text.startswith(b"["):
        return FileFormat.JSON
    if text.startswith(b"{"):
        return _json_format(text)
    named = _NAME.search(file.name)
    kind = named[1].lower() if named else ""
    if kind in ("json", "jsonl", "ndjson"):
        return FileFormat.JSONL
    separator = separator_of(text)
    if kind in ("tsv", "tab") or separator == "\t":
        return FileFormat.TSV
    if kind == "csv" or separator:
        return FileFormat.CSV
    raise _invalid(
        file,
        "its first line is neither JSON nor a header of several columns",
        "Write one JSON object a line, name it .csv if it has one column, or set dataset.fileFormat",
    )


def _binary_format(start: bytes) -> FileFormat | None:
    if is_parquet(start):
        return FileFormat.PARQUET
    if start.startswith((_ARROW_FILE, _ARROW_STREAM)):
        return FileFormat.ARROW
    return None


def _json_format(text: bytes) -> FileFormat:
    """JSONL, unless the first line is the beginning of an object that ends on a later one."""
    line, _, rest = text.partition(b"\n")
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        if error.pos < len(line.rstrip().decode("utf-8", "replace")):
            return FileFormat.JSONL
    except ValueError:
        return FileFormat.JSONL
    else:
        return FileFormat.JSONL
    try:
        json.JSONDecoder().raw_decode(text.decode("utf-8", "ignore"))
    except ValueError:
        is_long = len(text) > LOOKED_AT_BYTES // 2 and line.strip() == b"{"
        return FileFormat.JSON if is_long else FileFormat.JSONL
    except RecursionError:
        return FileFormat.JSONL
    return FileFormat.JSON if rest.strip() else FileFormat.JSONL


def _invalid(file: RowFile, what: str, remedy: str) -> StageError:
    return StageError(Reason.DATASET_INVALID, f"{file.name}: {what}. {remedy.removesuffix('.')}.")
