"""Rows that other processes make: the same rows, the same errors and the same report as of one process."""

import hashlib
import json
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sluice_api.dataset import DatasetFormat
from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode
from sluice_api.training import OverlongRows
from sluice_trainer import base_model
from sluice_trainer.data import parallel
from sluice_trainer.data.make import RowFormat, Task
from sluice_trainer.data.parallel import MakerSettings, make_all
from sluice_trainer.data.read.batch import JsonLines
from sluice_trainer.errors import StageError
from tests.unit.trainer.jobs import Job, chat

TEXTS = [{"text": f"Row {n} is of {n % 50}, and says so at some length, as rows do."} for n in range(700)]
DEEP = '{"text": ' + "[" * 600 + "]" * 600 + "}"


def with_dataset(job: Job, **dataset: Any) -> Job:
    return replace(job, spec=(*job.spec, ("dataset", {"validationSplit": "5%", **dataset})))


def write(job: Job, name: str, content: str | bytes) -> str:
    (job.volumes / "datasets" / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return f"pvc://datasets/{name}"


def lines(rows: list[Any]) -> str:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)


def arrow(rows: list[dict[str, Any]]) -> bytes:
    sink, table = pa.BufferOutputStream(), pa.Table.from_pylist(rows)
    with pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table, max_chunksize=300)
    return bytes(sink.getvalue())


def steps_and_bad_rows(job: Job) -> Job:
    uri = write(job, "a.jsonl", lines([*TEXTS[:300], "nonsense", *TEXTS[250:]]))
    steps = [{"clean": {}}, {"filter": {"words": ["7"]}}, {"deduplicate": {}}, {"chunk": {"tokens": 32}}]
    return with_dataset(job, uri=uri, onBadRow="Skip", steps=steps)


def arrow_file(job: Job) -> Job:
    return with_dataset(job, uri=write(job, "a.arrow", arrow(TEXTS)))


def nested(job: Job) -> Job:
    """JSON as an array is read here and sent to the others; lines are sent as they are."""
    array = write(job, "a.json", f"[{json.dumps(TEXTS[0])},\n{DEEP}, {json.dumps(TEXTS[1])}]")
    return with_dataset(job, sources=[{"uri": array}, {"uri": write(job, "b.jsonl", lines([*TEXTS[:4], DEEP]))}])


def wrong_row_before_a_damaged_file(job: Job) -> Job:
    """The second file is read while the first one's rows are made."""
    write(job, "1.jsonl", lines([*TEXTS[:300], chat("Hi", "Hello")]))
    write(job, "2.jsonl.gz", b"\x1f\x8b damaged")
    return with_dataset(job, uri="pvc://datasets/?.jsonl*")


def damaged_file_before_a_wrong_row(job: Job) -> Job:
    write(job, "1.jsonl.gz", b"\x1f\x8b damaged")
    write(job, "2.jsonl", lines([*TEXTS[:300], chat("Hi", "Hello")]))
    return with_dataset(job, uri="pvc://datasets/?.jsonl*", format="Text")


CASES = (
    (steps_and_bad_rows, ""),
    (arrow_file, ""),
    (nested, "datasets/a.json, datasets/b.jsonl has 2 rows that can't be trained on."),
    (wrong_row_before_a_damaged_file, "datasets/1.jsonl, line 301: the row is Messages, but line 1 is Text"),
    (damaged_file_before_a_wrong_row, "datasets/1.jsonl.gz can't be unpacked"),
)


def came_out(job: Job) -> tuple[str, dict[str, Any]]:
    """How it ended, and what is left: tokens, where they are from, what is held out, the report."""
    try:
        job.prepare()
    except StageError as error:
        return error.message, {}
    folder, names = job.work / "prepared", ("input_ids", "lines", "files", "training", "validation")
    report = json.loads((folder / "report.json").read_bytes()) | {"job": ""}
    return "", {**{name: hashlib.sha256((folder / f"{name}.npy").read_bytes()).hexdigest() for name in names}, **report}


@pytest.mark.parametrize(("case", "says"), CASES, ids=[case.__name__ for case, _ in CASES])
def test_several_processes_end_as_one_does(job: Job, case: Any, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job, found = case(job), []
    for name, processes in (("one", 1), ("two", 2)):
        monkeypatch.setattr("sluice_trainer.data.collect.processes_for", lambda _, processes=processes: processes)
        found.append(came_out(replace(job, name=name)))
    assert found[0] == found[1]
    assert found[0][0].startswith(says)
    assert bool(found[0][0]) is bool(says)


def test_process_that_is_killed_is_an_error_with_a_remedy(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = tmp_path / "memory.events"
    monkeypatch.setattr(parallel, "MEMORY_EVENTS", events)
    events.write_text("oom_kill 1\n")
    settings = MakerSettings(base_model.locate("pvc://models/tiny"), None, 64, OverlongRows.TRUNCATE)
    batch = JsonLines([(1, json.dumps(TEXTS[0]).encode())])
    task = Task(batch, "a", "line", RowFormat(DatasetFormat.TEXT, {}))
    others = set(multiprocessing.active_children())
    made = make_all(iter([(number, task) for number in range(40)]), settings.maker(), 2, settings)
    next(made)
    for process in set(multiprocessing.active_children()) - others:
        process.kill()
    with pytest.raises(StageError) as raised:
        list(made)
    assert (raised.value.reason, raised.value.code) == (Reason.OUT_OF_MEMORY, ExitCode.BAD_INPUT)
    assert "Raise resources.memory, of which Prepare has 4Gi at most" in raised.value.message
    events.write_text("oom_kill 0\n")
    assert parallel._lost_process().reason == Reason.TRAINER_FAILED  # memory is the reason only if the kernel says so
