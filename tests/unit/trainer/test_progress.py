"""How much of the files is read, and how much there is: by it Prepare says in time that it takes too long."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sluice_api.dataset import FileFormat
from sluice_api.reasons import Reason
from sluice_trainer.data.parallel import WORTH_BYTES, processes_for
from sluice_trainer.data.read.read import PACKED_TIMES, about_bytes, read
from sluice_trainer.data.read.row_file import RowFile
from sluice_trainer.errors import StageError

ROWS = 10_000
TABLE = pa.table({"text": [os.urandom(400).hex() for _ in range(ROWS)]})
LINES = "".join(f"{json.dumps({'text': text})}\n" for text in TABLE["text"].to_pylist()).encode()


def parquet(path: Path) -> None:
    """In one row group, as many tools write it."""
    pq.write_table(TABLE, path, row_group_size=ROWS, compression="zstd")


def parquet_in_groups(path: Path) -> None:
    pq.write_table(TABLE, path, row_group_size=1500)


def arrow_file(path: Path) -> None:
    """In one record batch."""
    with pa.ipc.new_file(path, TABLE.schema) as file:
        file.write_table(TABLE)


def arrow_stream(path: Path) -> None:
    """As the library `datasets` writes it."""
    with pa.ipc.new_stream(path, TABLE.schema) as stream:
        stream.write_table(TABLE, max_chunksize=1500)


def jsonl(path: Path) -> None:
    path.write_bytes(LINES)


def jsonl_gz(path: Path) -> None:
    path.write_bytes(gzip.compress(LINES))


def file_of(write: Callable[[Path], None], folder: Path) -> RowFile:
    write(folder / "rows")
    return RowFile((folder / "rows").resolve(), "rows")


@pytest.mark.parametrize("write", [parquet, parquet_in_groups, arrow_file, arrow_stream, jsonl, jsonl_gz])
def test_share_of_a_file_that_is_read_is_that_of_its_rows(write: Callable[[Path], None], tmp_path: Path) -> None:
    rows, shares, expected, file = 0, [], [], file_of(write, tmp_path)
    with read(file, FileFormat.AUTO) as reading:
        for batch in reading.batches:
            rows += len(list(batch.decoded()))
            shares.append(reading.done())
            expected.append(rows / ROWS)
    assert rows == ROWS
    assert len(shares) > 5
    assert shares[-1] == 1
    ahead = 2 * 2**20 / file.path.stat().st_size  # what is read at once, and unpacked at once
    assert all(-0.05 < share - part < ahead + 0.05 for share, part in zip(shares, expected, strict=True))
    if write in (parquet, parquet_in_groups, arrow_file):  # of which rows are counted
        assert shares == pytest.approx(expected, abs=0.05)


def test_rows_are_as_many_bytes_as_they_unpack_to(tmp_path: Path) -> None:
    for write in (parquet, parquet_in_groups):
        file = file_of(write, tmp_path)
        assert about_bytes(file) == pytest.approx(TABLE.nbytes, rel=0.1)
    assert about_bytes(file_of(jsonl, tmp_path)) == len(LINES)
    packed = file_of(jsonl_gz, tmp_path)
    assert about_bytes(packed) == PACKED_TIMES * packed.path.stat().st_size


def test_packed_rows_are_worth_several_processes(tmp_path: Path) -> None:
    """Parquet of texts that are alike takes a hundredth of the bytes, and tokens take as long as of any other."""
    text = ["The same question with another number: " * 50 + str(index) for index in range(40_000)]
    pq.write_table(pa.table({"text": text}), tmp_path / "rows", compression="zstd", use_dictionary=False)
    file = RowFile((tmp_path / "rows").resolve(), "rows")
    assert file.path.stat().st_size < WORTH_BYTES / 10
    assert processes_for(about_bytes(file), cores=4, memory=2**40) == 4


def test_table_that_is_cut_off_is_named_before_any_row_is_read(tmp_path: Path) -> None:
    file = file_of(parquet, tmp_path)
    file.path.write_bytes(file.path.read_bytes()[:-100])
    with pytest.raises(StageError, match=r"rows can't be read: .* It is cut off or damaged") as raised:
        about_bytes(file)
    assert raised.value.reason == Reason.DATASET_INVALID
