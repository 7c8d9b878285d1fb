"""Rows as people have them, from files to tokens: other field names, several sources, rows that are held out."""

import csv
import gzip
import io
import json
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from sluice_api.reasons import Reason
from sluice_trainer.data import parallel
from sluice_trainer.data.collect import forecast
from sluice_trainer.data.read.batch import TableRows
from sluice_trainer.errors import StageError
from sluice_trainer.token_rows import TokenRows
from tests.unit.trainer.jobs import ROWS, Job, chat, write_rows


def with_dataset(job: Job, **dataset: Any) -> Job:
    return replace(job, spec=(*job.spec, ("dataset", {"validationSplit": "0%", **dataset})))


def learnt(job: Job, rows: TokenRows) -> list[tuple[str, str]]:
    """Of each row, what it is asked and what it learns."""
    tokenizer = AutoTokenizer.from_pretrained(job.volumes / "models" / "tiny")
    made = [rows[index] for index in range(len(rows))]
    return [
        (tokenizer.decode(row.input_ids[row.loss_mask == 0]), tokenizer.decode(row.input_ids[row.loss_mask == 1]))
        for row in made
    ]


def as_csv(rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_jsonl(rows: int) -> bytes:
    return b"".join(json.dumps({"text": f"{rows} {i}"}).encode() + b"\n" for i in range(rows))


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


ALPACA = [
    {"instruction": "Give three tips for staying healthy.", "input": "", "output": "Eat. Sleep. Move."},
    {"instruction": "Classify the word.", "input": "apple", "output": "A fruit."},
]
DOLLY = {"instruction": "When did it start?", "context": "In 2000.", "response": "In 2000.", "category": "closed_qa"}
OPEN_ORCA = [
    {"id": "niv.1", "system_prompt": "Be brief.", "question": "What is 2 + 2?", "response": "Four."},
    {"id": "t0.2", "system_prompt": "", "question": "What is red?", "response": "A colour."},
]
PROMPTS = [{"act": "Linux Terminal", "prompt": 'I want you to act as a "terminal", please.'}]


@pytest.mark.parametrize(
    ("name", "content", "dataset", "pairs"),
    [
        ("alpaca_data.json", json.dumps(ALPACA, indent=4).encode(), {}, [
            ("Give three tips for staying healthy.", "Eat. Sleep. Move."), ("Classify the word.\n\napple", "A fruit."),
        ]),
        ("pretty.jsonl", (json.dumps(chat("Hi?", "Hello!"), indent=2) + "\n").encode() * 2, {}, [
            ("Hi?", "Hello!"), ("Hi?", "Hello!"),
        ]),
        ("databricks-dolly-15k.jsonl", json.dumps(DOLLY).encode(), {}, [
            ("When did it start?\n\nIn 2000.", "In 2000."),
        ]),
        ("1M-GPT4-Augmented.parquet", as_parquet(OPEN_ORCA), {}, [
            ("What is 2 + 2?", "Four."), ("What is red?", "A colour."),
        ]),
        ("prompts.csv", as_csv(PROMPTS), {"fields": {"text": "prompt"}}, [
            ("I", ' want you to act as a "terminal", please.'),
        ]),
        ("training_data.csv", as_csv([{"q": "Hi?", "a": "Hello!"}]), {"fields": {"prompt": "q", "completion": "a"}}, [
            ("Hi?", "Hello!"),
        ]),
        ("renamed.jsonl", b'{"instruction": "no", "question": "Hi?", "answer": "Hello!", "output": "x"}',
            {"format": "Alpaca", "fields": {"instruction": "question", "output": "answer"}}, [("Hi?", "Hello!")]),
        ("cells.csv", as_csv([{"messages": json.dumps(chat("Hi?", "Hello!")["messages"])}]), {}, [("Hi?", "Hello!")]),
    ],
)  # fmt: skip
def test_public_data_sets_are_read_as_they_come(
    job: Job, name: str, content: bytes, dataset: dict[str, Any], pairs: list[tuple[str, str]]
) -> None:
    (job.volumes / "datasets" / name).write_bytes(content)
    job = with_dataset(job, uri=f"pvc://datasets/{name}", **dataset)
    job.prepare()
    found = learnt(job, job.prepared().training)
    assert len(found) == len(pairs)
    for (asked, answered), (question, answer) in zip(found, pairs, strict=True):
        assert question in asked
        assert answered.removesuffix("<|im_end|>") == answer


def test_system_prompt_of_open_orca_is_read(job: Job) -> None:
    (job.volumes / "datasets" / "orca.parquet").write_bytes(as_parquet(OPEN_ORCA))
    job = with_dataset(job, uri="pvc://datasets/orca.parquet")
    job.prepare()
    assert ["Be brief." in asked for asked, _ in learnt(job, job.prepared().training)] == [True, False]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "prompt"}, ', line 1: the row has "act", "p", not "prompt", which dataset.fields names. Name fields'),
        ({"text": "pp"}, ', line 1: the row has "act", "p", not "pp", which dataset.fields names. Write "p" for "pp"'),
        ({"text": "act"}, ', line 1: "act" is a number, not a string'),
        ({"prompt": "p", "completion": "p"}, 'dataset.fields names "p" more than once: '),
        (
            {"text": "p", "system": "atc"},
            ': no row has "atc", which dataset.fields names. Write "act" for "atc" there.',
        ),
    ],
)
def test_field_that_is_not_there_is_named(job: Job, fields: dict[str, str], message: str) -> None:
    write_rows(job.volumes / job.dataset, [{"act": 3, "p": "x"}])
    with pytest.raises(StageError) as raised:
        with_dataset(job, uri=f"pvc://{job.dataset}", fields=fields).prepare()
    assert raised.value.message.removeprefix("datasets/rows.jsonl").startswith(message)


TOKENS = {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}


def test_rows_that_were_tokenised_elsewhere_stay_as_they_are(job: Job) -> None:
    (job.volumes / "datasets" / "tokens.parquet").write_bytes(as_parquet([TOKENS, TOKENS]))
    job = with_dataset(job, uri="pvc://datasets/tokens.parquet")
    job.prepare()
    row = job.prepared().training[1]
    assert (row.input_ids.tolist(), row.loss_mask.tolist(), row.line) == ([5, 6, 7, 8], [0, 0, 1, 1], 2)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"input_ids": [5, 9999], "labels": [-100, 9999]}, '"input_ids" has 9999, which is no token of the model'),
        ({"input_ids": [-1, 5], "labels": [-100, 5]}, '"input_ids" has -1, which is no token of the model'),
        (TOKENS | {"labels": [-100, -100, 8, -100]}, '"labels[2]" is 8, and "input_ids[2]" is 7'),
        (TOKENS | {"labels": [-100, 7, 8]}, '"input_ids" has 4 tokens, "labels" 3'),
        (TOKENS | {"labels": [5, -100, -100, -100]}, "there is no token to learn in this row"),
        (TOKENS | {"labels": "x"}, '"labels" is no array of whole numbers'),
    ],
)
def test_tokens_that_can_not_be_learnt_are_refused(job: Job, row: dict[str, Any], problem: str) -> None:
    write_rows(job.volumes / job.dataset, [TOKENS, row])
    with pytest.raises(StageError) as raised:
        with_dataset(job, uri=f"pvc://{job.dataset}").prepare()
    assert raised.value.message.startswith(f"datasets/rows.jsonl, line 2: {problem}")


KINDS = [
    *(pa.list_(number()) for number in (pa.int16, pa.int32, pa.int64, pa.uint32)),
    pa.large_list(pa.int64()),
    pa.list_(pa.uint64()),
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_tokens_of_a_table_are_read_and_refused_as_those_of_json(job: Job, kind: pa.DataType) -> None:
    """They are never made Python's numbers, which take ten times the memory."""
    labels = pa.list_(pa.int64())
    rows: list[dict[str, Any]] = [TOKENS, TOKENS | {"labels": [-100, -100, 8, -100]}, TOKENS | {"labels": [-100, 7, 8]}]
    rows += [TOKENS | {"labels": None}, TOKENS | {"labels": [-100, None, 7, 8]}, TOKENS | {"labels": [2**40] * 4}]
    rows += [{"input_ids": [], "labels": []}, TOKENS]
    schema = pa.schema([("input_ids", kind), ("labels", labels)])
    pq.write_table(pa.Table.from_pylist(rows, schema), job.volumes / "datasets" / "tokens.parquet")
    job = with_dataset(job, uri="pvc://datasets/tokens.parquet", format="Tokens", onBadRow="Skip")
    refused = job.prepare().refused
    for line, problem in zip(
        refused,
        (
            'row 2: "labels[2]" is 8, and "input_ids[2]" is 7',
            'row 3: "input_ids" has 4 tokens, "labels" 3',
            "row 4: ",
            'row 5: "labels" is no array of whole numbers',
            'row 6: "labels" is no array of whole numbers',
        ),
        strict=False,
    ):
        assert line.startswith(problem)
    assert len(refused) >= 5
    row = job.prepared().training[1]
    assert (row.input_ids.tolist(), row.loss_mask.tolist(), row.line) == ([5, 6, 7, 8], [0, 0, 1, 1], 8)


def test_tokens_of_a_table_take_few_bytes_until_they_are_rows() -> None:
    tokens = pa.array([np.arange(2048, dtype=np.int32)] * 8, pa.list_(pa.int32()))
    batch = TableRows(1, pa.record_batch({"input_ids": tokens, "labels": tokens}))
    tracemalloc.start()
    rows = list(batch.decoded())
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows) == 8
    assert max(held, most) < 8 * 2048 * 2 * 12


def test_rows_that_are_held_out_may_have_files_of_their_own(job: Job) -> None:
    write_rows(job.volumes / "datasets" / "test.jsonl", [{"prompt": "p", "completion": "c"}] * 3)
    job = with_dataset(
        job, uri=f"pvc://{job.dataset}", validation={"uri": "pvc://datasets/test.jsonl"}, validationSplit="10%"
    )
    result = job.prepare()
    assert (result.rows, result.validation_rows) == (40, 3)
    assert {row.file for row in (job.prepared().validation[i] for i in range(3))} == {1}


def test_sources_are_read_as_often_as_their_weights_say(job: Job) -> None:
    files = {"a": [chat(f"a{i}", "x") for i in range(40)], "b": [{"text": f"b {i}"} for i in range(20)]}
    for name, rows in files.items():
        write_rows(job.volumes / "datasets" / f"{name}.jsonl", rows)
    sources = [
        {"uri": "pvc://datasets/a.jsonl", "weight": "0.5"},
        {"uri": "pvc://datasets/b.jsonl", "weight": "2"},
    ]
    job = with_dataset(job, sources=sources, validationSplit="25%")
    job.prepare()
    prepared = job.prepared()
    made_rows = [prepared.training[index] for index in range(len(prepared.training))]
    held_out = {(row.file, row.line) for row in (prepared.validation[i] for i in range(len(prepared.validation)))}
    places, times = np.unique([(made.file, made.line) for made in made_rows], axis=0, return_counts=True)
    of_b = 20 - sum(file == 1 for file, _ in held_out)
    assert {*times[places[:, 0] == 0].tolist()} == {1}
    assert 8 <= int((places[:, 0] == 0).sum()) <= 24
    assert times[places[:, 0] == 1].tolist() == [2] * of_b
    assert not {(int(file), int(line)) for file, line in places} & held_out
    assert [file.name for file in prepared.manifest.row_files] == ["datasets/a.jsonl", "datasets/b.jsonl"]


def test_bad_row_of_several_files_is_named_with_its_file(job: Job) -> None:
    write_rows(job.volumes / "datasets" / "b.jsonl", [{"text": "a"}, {"text": 3}])
    sources = [{"uri": f"pvc://{job.dataset}"}, {"uri": "pvc://datasets/b.jsonl"}]
    with pytest.raises(StageError) as raised:
        with_dataset(job, sources=sources).prepare()
    assert raised.value.reason == Reason.DATASET_INVALID
    assert raised.value.message.startswith('datasets/b.jsonl, line 2: "text" is a number')


@pytest.mark.parametrize(
    ("size", "cores", "memory", "processes"),
    [
        (2**30, 4, 2**40, 4), (2**30, 64, 2**40, 8), (2**20, 4, 2**40, 1), (2**30, 4, 2**30, 1),
        (2**30, 4, 2**30 + 2**29, 2),
    ],
)  # fmt: skip
def test_rows_are_made_by_as_many_processes_as_are_worth_it_and_fit(
    size: int, cores: int, memory: int, processes: int
) -> None:
    assert parallel.processes_for(size, cores, memory) == processes


@pytest.mark.parametrize(
    ("done", "seconds", "expected"),
    [
        (10, 59, None),  # the tokenizer has hardly begun
        (10, 60, 6000),
        (20, 60, None),
        (0, 7200, None),
        (999, 3500, None),
    ],
)
def test_rows_that_take_longer_than_the_stage_may_are_forecast(done: int, seconds: int, expected: int | None) -> None:
    assert forecast(done, 1000, seconds, 3600) == expected


def test_rows_that_take_longer_than_the_stage_may_are_reported(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[float, int]] = []

    def five_hours(done: float, size: int, _seconds: float, _deadline: int) -> int:
        asked.append((done, size))
        return 5 * 3600

    monkeypatch.setattr("sluice_trainer.data.collect.forecast", five_hours)
    for name, content in {"a.jsonl": as_jsonl(300), "b.jsonl.gz": gzip.compress(as_jsonl(300))}.items():
        (job.volumes / "datasets" / name).write_bytes(content)
    job = with_dataset(job, sources=[{"uri": f"pvc://datasets/{name}"} for name in ("a.jsonl", "b.jsonl.gz")])
    says = (
        "To prepare datasets/a.jsonl, datasets/b.jsonl.gz takes about 5.0 hours, and stageDeadlineSeconds 3600 ends "
        "Prepare before that. Set stageDeadlineSeconds: 28800 in a new job, or tokenise the rows elsewhere and give "
        "them as Parquet with input_ids and labels (dataset.format: Tokens)."
    )
    assert any("takes about 5.0 hours" in problem for problem in job.prepare().problems)
    assert says in capsys.readouterr().out
    ((done, size),) = asked
    assert 0 < done < size


@pytest.mark.parametrize(
    ("held_out", "steps", "left"),
    [
        (3, [], (40, 3)),
        (3, [{"deduplicate": {}}], (37, 3)),  # the copies that would be trained on go, and what is measured stays
        (40, [{"deduplicate": {}}], "no row is left to train on"),
    ],
)
def test_held_out_rows_stay_where_duplicates_are_dropped(
    job: Job, held_out: int, steps: list[Any], left: tuple[int, int] | str
) -> None:
    write_rows(job.volumes / "datasets" / "test.jsonl", ROWS[:held_out])
    job = with_dataset(job, uri=f"pvc://{job.dataset}", validation={"uri": "pvc://datasets/test.jsonl"}, steps=steps)
    if isinstance(left, str):
        with pytest.raises(StageError, match=left):
            job.prepare()
        return
    result = job.prepare()
    assert (result.rows, result.validation_rows) == left
    said = (job.work / "prepared" / "report.html").read_text()
    assert ("give other rows in dataset.validation" in said) == (not steps)


def test_report_says_that_nothing_is_held_out(job: Job) -> None:
    write_rows(job.volumes / job.dataset, [ROWS[0]] * 12)
    with_dataset(job, uri=f"pvc://{job.dataset}", validationSplit="10%").prepare()
    assert "No row is held out" in (job.work / "prepared" / "report.html").read_text()
