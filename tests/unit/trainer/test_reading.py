"""Files of rows, whatever they are packed in and however they hold rows."""

import csv
import gzip
import io
import json
import pickle
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_api.dataset import FileFormat
from sluice_trainer.data.read import json_values
from sluice_trainer.data.read.json_values import JsonStream
from sluice_trainer.data.read.read import read, unit_of
from sluice_trainer.data.read.row_file import RowFile
from sluice_trainer.data.row import BadRowError
from sluice_trainer.errors import StageError

ROWS = [
    {"instruction": "Say hi, please", "input": "", "output": "Hi\nthere"},
    {"instruction": 'A "quoted" word', "input": "é", "output": "日本語, ok"},
    {"instruction": "tab\there", "input": "x;y", "output": "[not json]"},
]

Read = list[tuple[int, Any]]


def rows_of(path: Path, said: FileFormat = FileFormat.AUTO, name: str = "") -> tuple[str, Read]:
    """The unit and the rows of a file; of those that are refused the problem."""
    with read(RowFile(path, name or path.name), said) as reading:
        rows = [
            (number, str(row) if isinstance(row, BadRowError) else dict(row))
            for batch in reading.batches
            for number, row in batch.decoded()
        ]
        return unit_of(reading.file_format), rows


def jsonl(rows: Sequence[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def separated(rows: Sequence[Any], **dialect: Any) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n", **dialect)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows: Sequence[Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink, row_group_size=2)
    return sink.getvalue()


def arrow(rows: Sequence[Any], make: Callable[..., Any]) -> bytes:
    sink = io.BytesIO()
    table = pa.Table.from_pylist(list(rows))
    with make(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, "zstd", asbytes=True))


def tar(content: bytes) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as file:
        about = tarfile.TarInfo("rows.jsonl")
        about.size = len(content)
        file.addfile(about, io.BytesIO(content))
    return archive.getvalue()


def same_name(write: Callable[[pa.Table, io.BytesIO], object]) -> bytes:
    """A table with two columns of one name."""
    sink = io.BytesIO()
    write(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"]), sink)
    return sink.getvalue()


def write_arrow(table: pa.Table, sink: io.BytesIO) -> None:
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


KINDS: dict[str, tuple[bytes, str, list[int]]] = {
    "rows.jsonl": (jsonl(ROWS), "line", [1, 2, 3]),
    "blank.jsonl": (b"\xef\xbb\xbf\n" + jsonl(ROWS), "line", [2, 3, 4]),
    "array.json": (json.dumps(ROWS).encode(), "row", [1, 2, 3]),
    "pretty.json": (b"\xef\xbb\xbf" + json.dumps(ROWS, indent=2).encode(), "row", [1, 2, 3]),
    "objects.json": ("\n".join(json.dumps(row, indent=2) for row in ROWS).encode(), "row", [1, 2, 3]),
    "rows.csv": (separated(ROWS), "line", [2, 4, 5]),
    "bom.csv": (b"\xef\xbb\xbf" + separated(ROWS).replace(b"\n", b"\r\n"), "line", [2, 4, 5]),
    "excel.csv": (separated(ROWS, delimiter=";"), "line", [2, 4, 5]),
    "rows.tsv": (separated(ROWS, delimiter="\t"), "line", [2, 4, 5]),
    "rows.parquet": (parquet(ROWS), "row", [1, 2, 3]),
    "file.arrow": (arrow(ROWS, pa.ipc.new_file), "row", [1, 2, 3]),
    "stream.arrow": (arrow(ROWS, pa.ipc.new_stream), "row", [1, 2, 3]),
    "rows.jsonl.gz": (gzip.compress(jsonl(ROWS[:2])) + gzip.compress(jsonl(ROWS[2:])), "line", [1, 2, 3]),
    "rows.csv.zst": (zstd(separated(ROWS)), "line", [2, 4, 5]),
    "two.jsonl.zst": (zstd(jsonl(ROWS[:2])) + zstd(jsonl(ROWS[2:])), "line", [1, 2, 3]),
    "pzstd.jsonl.zst": (b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + zstd(jsonl(ROWS)), "line", [1, 2, 3]),
    "stream.arrow.gz": (gzip.compress(arrow(ROWS, pa.ipc.new_stream)), "row", [1, 2, 3]),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("called", ["as it is", "otherwise"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str, called: str) -> None:
    """Whatever it is called: what decides is its content."""
    content, unit, numbers = KINDS[name]
    path = tmp_path / (name if called == "as it is" else "data")
    path.write_bytes(content)
    found_unit, rows = rows_of(path)
    windows = b"\r\n" in content
    expected = [{k: v.replace("\n", "\r\n") if windows else v for k, v in row.items()} for row in ROWS]
    assert (found_unit, rows) == (unit, list(zip(numbers, expected, strict=True)))


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b"text\nHello\n", [(2, {"text": "Hello"})]),
        (b'text,n\n"a,b",1\nc\n"d",2,3\ne,4\n', [
            (2, {"text": "a,b", "n": "1"}), (3, "the row has 1 cells, the header 2"),
            (4, "the row has 3 cells, the header 2"), (5, {"text": "e", "n": "4"}),
        ]),
        (b'text,n\n"a"b,1\nc,2\n', [(2, "not CSV: ',' expected after '\"'"), (3, {"text": "c", "n": "2"})]),
        (b"text,n\ncaf\xe9,1\nc,2\n", [(2, "not UTF-8"), (3, {"text": "c", "n": "2"})]),
        (b"\n\ntext\n", []),
        (b"\n  \n;;\ntext;n;m, o\na, b, c;1;2\n", [(5, {"text": "a, b, c", "n": "1", "m, o": "2"})]),
        (b'text,n\n"\n\n\n",1\nc\n', [(2, {"text": "\n\n\n", "n": "1"}), (6, "the row has 1 cells, the header 2")]),
        (b"", []),
        (b"\xef\xbb\xbfsep=;\r\ntext;n\r\na,b;1\r\n", [(3, {"text": "a,b", "n": "1"})]),  # Excel's first line
        (b'text,"n; m; o"\na,b\n', [(2, {"text": "a", "n; m; o": "b"})]),
    ],
)  # fmt: skip
def test_csv_rows_that_are_wrong_are_named_by_their_line(tmp_path: Path, content: bytes, rows: Read) -> None:
    (tmp_path / "rows.csv").write_bytes(content)
    assert rows_of(tmp_path / "rows.csv")[1] == rows


def test_fields_that_are_null_in_a_table_are_absent_at_every_depth(tmp_path: Path) -> None:
    """In a table each struct has the fields of all others: a message without tool calls has them as null."""
    calls = [{"function": {"name": "f", "arguments": {"x": "1"}}}, {"function": {"name": "g", "arguments": {"y": 2}}}]
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]} for call in calls
    ]
    (tmp_path / "rows.parquet").write_bytes(parquet(rows))
    assert rows_of(tmp_path / "rows.parquet")[1] == [(1, rows[0]), (2, rows[1])]


def test_maps_of_a_table_are_objects(tmp_path: Path) -> None:
    """As Spark writes turns."""
    turn = {"role": "user", "content": "a"}
    turns = pa.array([[[*turn.items()]]], pa.list_(pa.map_(pa.string(), pa.string())))
    pq.write_table(pa.table({"messages": turns}), tmp_path / "rows.parquet")
    assert rows_of(tmp_path / "rows.parquet")[1] == [(1, {"messages": [turn]})]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2**62], pa.timestamp("us")),
        ([1, 2**30], pa.date32()),
        ([[("a", 1)], [("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.int8())),
    ],
)
def test_value_of_a_table_that_python_has_not_is_a_bad_row(
    tmp_path: Path, values: list[Any], kind: pa.DataType
) -> None:
    pq.write_table(pa.table({"text": ["a", "b"], "more": pa.array(values, kind)}), tmp_path / "rows.parquet")
    (_, first), (_, second) = rows_of(tmp_path / "rows.parquet")[1]
    assert isinstance(first, dict)
    assert second.startswith("a value can't be read: ")


@pytest.mark.parametrize(
    ("name", "content", "said", "message"),
    [
        ("a.json", b'[{"text": "a"},\n {"text": "b" "c"}]', "Auto", ", row 2 (line 2, column 15): Expecting ',' del"),
        ("a.json", b'[{"text": "a"},\n {"text": "b"}\n', "Auto", ", row 2 (line 3, column 1): the array has no end"),
        ("a.json", b'[{"text": "a"}]\n{}', "Auto", ", row 1 (line 2, column 1): something follows the array's end"),
        ("a.json", b'[{"text": "a"},]', "Auto", ", row 2 (line 1, column 16): a comma with nothing after it. Rem"),
        ("a.json", b"[" + b"9" * 5000 + b"]", "Auto", ", row 1 (line 1, column 2): it has a number of thousands"),
        ("a.json", b"[" * 100_000, "Auto", ", row 1 (line 1, column 2): nested too deeply"),
        ("a.json", b'{\n "text": "a"\n}\n{\n "text": }', "Auto", ", row 2 (line 5, column 10): Expecting value"),
        ("a.csv", b'text,n\na,1\n"b,2\nc,3\n', "Auto", ", line 3: a quote that opens in this row is not closed"),
        ("a.csv", b"\ntext;text\na,b\n", "Auto", ', line 2: the header has "text" twice.'),
        ("a.csv", b"text,text\na,b\n", "Auto", ', line 1: the header has "text" twice.'),
        ("a.txt", b"Once upon a time\n", "Auto", ": its first line is neither JSON nor a header of several columns"),
        ("a.zip", b"PK\x03\x04....", "Auto", " is a zip archive, or a workbook. Unpack it, or save the sheet as CSV."),
        ("a.bz2", b"BZh91AY", "Auto", " is packed with bzip2. Unpack it, or pack it with gzip or zstd."),
        ("a.pkl", b"\x80\x04\x95....", "Auto", " is a Python pickle, which is never opened."),
        ("a.pkl", pickle.dumps(ROWS, 2), "Auto", " is a Python pickle, which is never opened."),
        ("a.pkl", pickle.dumps(ROWS, 5), "Auto", " is a Python pickle, which is never opened."),
        ("a.tar.gz", gzip.compress(tar(jsonl(ROWS))), "Auto", " is a tar archive. Unpack it."),
        ("a.gz.gz", gzip.compress(gzip.compress(jsonl(ROWS))), "Auto", " is packed twice. Unpack it once."),
        ("a.lz4", b"\x04\x22\x4d\x18....", "Auto", " is packed with lz4. Unpack it, or pack it with gzip or zstd."),
        ("a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1....", "Auto", " is a workbook, or a document. Save the sheet"),
        ("a.db", b"SQLite format 3\0....", "Auto", " is a database of SQLite. Export its table as CSV."),
        ("a.csv", b"text,n\ra,1\r", "Auto", ", line 1: the header is not CSV: its lines end with CR alone. End them"),
        ("a.parquet", same_name(pq.write_table), "Auto", ' has "text" twice. Give each column its own name.'),
        ("a.arrow", same_name(write_arrow), "Auto", ' has "text" twice. Give each column its own name.'),
        ("a.csv", "text,n\n".encode("utf-16"), "Auto", ": it is no UTF-8 text. Save it as UTF-8."),
        ("a.jsonl", jsonl(ROWS), "Parquet", ": it is no Parquet file. Set dataset.fileFormat to what it is."),
        ("a.jsonl", parquet(ROWS), "JSONL", ": it is a Parquet file"),
        ("a.parquet", parquet(ROWS)[:-9], "Auto", " can't be read: "),
        ("a.parquet", b"PAR1\x15\x04\x15\x10\x15\x14L\x15PAR1", "Auto", " can't be read: "),
        ("a.arrow", arrow(ROWS, pa.ipc.new_file)[:-9], "Auto", " can't be read: "),
        ("a.parquet.gz", gzip.compress(parquet(ROWS)), "Auto", " is Parquet inside of gzip or zstd. Unpack it"),
        ("a.jsonl.gz", gzip.compress(jsonl(ROWS))[:-9], "Auto", " can't be unpacked: Compressed file ended"),
    ],
)  # fmt: skip
def test_file_that_can_not_be_read_on_is_refused(
    tmp_path: Path, name: str, content: bytes, said: str, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StageError) as raised:
        rows_of(tmp_path / name, FileFormat(said))
    assert raised.value.message.startswith(f"{name}{message}")


@pytest.mark.parametrize("packed", [gzip.compress, lambda data: pa.compress(data, "zstd", asbytes=True)])
def test_decompression_bomb_is_refused_before_it_fills_anything(
    tmp_path: Path, packed: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sluice_trainer.data.read.opened._FREE_BYTES", 2**20)
    (tmp_path / "rows.jsonl").write_bytes(packed(b'{"text": "a"}' + b"\n" * 2**24))
    with pytest.raises(StageError, match="becomes more than 200 times as large when it is unpacked"):
        rows_of(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("name", "before", "row", "after"),
    [
        ("a.jsonl", b'{"text": "b"}\n', b'{"text": "%s"}', b"\n"),
        ("a.json", b"[", b'{"text": "%s"}', b"]"),
        ("a.csv", b"text,n\n", b'"%s",1', b"\n"),
        ("a.csv", b"text,n\n", b"%s,1", b"\n"),
        ("a.csv", b"text,n\n", b"%s", b",1\n"),
    ],
)
def test_row_of_100_mib_is_refused_in_a_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, before: bytes, row: bytes, after: bytes
) -> None:
    for module in ("json_values", "read", "tables"):
        monkeypatch.setattr(f"sluice_trainer.data.read.{module}.MAX_ROW_BYTES", 2**16)
    monkeypatch.setattr(json_values, "_BLOCK_BYTES", 2**12)
    (tmp_path / name).write_bytes(before + row % (b"x" * 2**18) + after)
    with pytest.raises(StageError, match=r"line [12]"):
        rows_of(tmp_path / name)


@pytest.mark.parametrize("part", [b'"xxxxxxxxxxxx",', b'"xxxxxxxxxxxx\n",'])
def test_csv_row_of_many_cells_is_bounded_as_a_whole(
    tmp_path: Path, part: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No cell is too large, and of the second kind no line."""
    monkeypatch.setattr("sluice_trainer.data.read.tables.MAX_ROW_BYTES", 2**12)
    for parts, is_refused in ((200, False), (300, True)):
        (tmp_path / "a.csv").write_bytes(b"text,n\na,1\n" + part * parts + b'"x"\nb,2\n')
        if is_refused:
            with pytest.raises(StageError, match=r"a\.csv, line 3"):
                rows_of(tmp_path / "a.csv")
        else:
            numbers = [row for _, row in rows_of(tmp_path / "a.csv")[1]]
            assert numbers == [{"text": "a", "n": "1"}, "the row has 201 cells, the header 2", {"text": "b", "n": "2"}]


def test_table_with_a_large_row_among_small_ones_comes_in_small_batches(tmp_path: Path) -> None:
    rows = [{"text": "x" * (2**22 if index == 500 else 10)} for index in range(1000)]
    (tmp_path / "rows.parquet").write_bytes(parquet(rows))
    with read(RowFile(tmp_path / "rows.parquet", ""), FileFormat.AUTO) as reading:
        sizes = [batch.table.nbytes for batch in reading.batches]  # type: ignore[attr-defined]
    assert sum(size > 2**21 for size in sizes) == 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=3), max_size=6),
    st.sampled_from([None, 0, 2]),
    st.booleans(),
    st.integers(1, 40),
)
def test_json_values_are_those_of_json_wherever_blocks_end(
    rows: list[Any], indent: int | None, ascii_only: bool, block: int
) -> None:
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    stream = JsonStream(io.BytesIO(text.encode("utf-8", "surrogatepass")), "rows.json")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(json_values, "_BLOCK_BYTES", block)
        assert [value for _, value in stream.values()] == json.loads(text)
