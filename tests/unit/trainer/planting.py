"""How something wrong gets into a large clean file: into a row, a line, the whole file, or beside it."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from sluice_api.data_report import Severity
from tests.unit.trainer import clean
from tests.unit.trainer.clean import (
    MESSAGES,
    Clean,
    Rows,
)

Row = dict[str, Any]
Weights = dict[str, torch.Tensor]
ERROR, WARNING = Severity.ERROR, Severity.WARNING


@dataclass(frozen=True)
class Defect:
    """A kind, and how it is planted: into a row, a line, the whole file, or beside it."""

    kind: str
    says: str
    """The message: {at} is the row's place, {file} the file, and … any text."""
    severity: Severity = ERROR
    clean: Clean = MESSAGES
    row: Callable[[Row], Row] | None = None
    line: Callable[[bytes], bytes] | None = None
    """Of the row's own line, without the line end."""
    rows: Callable[[Rows, int], Rows] | None = None
    """Of all rows, with the index of a random one."""
    whole: Callable[[bytes, Random], bytes] | None = None
    """Of the bytes of the file."""
    name: str = ""
    """Of the file, if it is another than the clean one's."""
    second: Callable[[Rows, int], bytes] | None = None
    """Makes a second file of the rows of the first and the planted one's index. Its rows follow, or are held out."""
    dataset: Row = field(default_factory=dict)
    training: Row = field(default_factory=dict)
    spec: Row = field(default_factory=dict)
    template: str = ""
    model: Callable[[Path], object] | None = None


def of_answer(**fields: Any) -> Callable[[Row], Row]:
    """Change the last turn of a row."""
    return lambda row: {**row, "messages": [*row["messages"][:-1], {**row["messages"][-1], **fields}]}


def of_question(**fields: Any) -> Callable[[Row], Row]:
    """Change the first turn of a row."""
    return lambda row: {**row, "messages": [{**row["messages"][0], **fields}, *row["messages"][1:]]}


def of_turns(change: Callable[[list[Row]], list[Any]]) -> Callable[[Row], Row]:
    """Change the turns of a row."""
    return lambda row: {**row, "messages": change(row["messages"])}


def with_fields(**fields: Any) -> Callable[[Row], Row]:
    """Change fields of a row."""
    return lambda row: {**row, **fields}


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """Change a piece of a line."""

    def change(line: bytes) -> bytes:
        assert old in line
        return line.replace(old, new, 1)

    return change


def instead(content: bytes) -> Callable[[bytes, Random], bytes]:
    """Another file."""
    return lambda _whole, _random: content


def at_random(change: Callable[[bytes, int], bytes]) -> Callable[[bytes, Random], bytes]:
    """Change a file somewhere in its middle."""
    return lambda whole, random: change(whole, random.randrange(len(whole) // 4, 3 * len(whole) // 4))


def cut(whole: bytes, at: int) -> bytes:
    """A file that was not copied to its end."""
    return whole[:at]


def of_tokenizer(**fields: Any) -> Callable[[Path], None]:
    """Change a model's tokenizer_config.json, or its config.json by `config`."""

    def change(model: Path) -> None:
        for name, changed in (("tokenizer_config.json", fields), ("config.json", fields.pop("config", {}))):
            found = json.loads((model / name).read_text()) | changed
            (model / name).unlink()  # a link to what other tests have
            (model / name).write_text(json.dumps(found))

    return change


def of_weights(change: Callable[[Weights], Weights]) -> Callable[[Path], None]:
    """Change a model's weights."""

    def apply(model: Path) -> None:
        file = model / "model.safetensors"
        weights = change(load_file(file))
        file.unlink()  # a link to what other tests have
        save_file(weights, file, {"format": "pt"})

    return apply


def smaller_vocabulary(model: Path) -> None:
    """Make it a model of fewer tokens than its tokenizer has."""
    of_tokenizer(config={"vocab_size": 200})(model)
    of_weights(lambda weights: {n: w[:200] if len(w) > 200 else w for n, w in weights.items()})(model)


def cut_weights(model: Path) -> None:
    """Take the last byte from a model's weights."""
    file = model / "model.safetensors"
    content = file.read_bytes()
    file.unlink()  # a link to what other tests have
    file.write_bytes(content[:-1])


def column_twice(table: bytes, name: str) -> bytes:
    """A Parquet file with one of its columns once more."""
    found, sink = pq.read_table(io.BytesIO(table)), io.BytesIO()
    pq.write_table(found.append_column(name, found[name]), sink)
    return sink.getvalue()


def twice(change: Callable[[Row], Row] = lambda row: row) -> Callable[[Rows, int], Rows]:
    """Put a row, or what is made of it, at the end once more."""
    return lambda rows, at: [*rows, change(rows[at])]


def columns_changed(change: Callable[[Row], Row]) -> Callable[[Rows, int], bytes]:
    """A second file of some of the rows, each changed."""
    return lambda rows, _: clean.parquet([change(row) for row in rows[:50]])


def held_out(change: Callable[[Row], Row] = lambda row: row) -> Callable[[Rows, int], bytes]:
    """A file of new rows after the planted one, or what is made of it."""
    random = Random("held out")
    return lambda rows, at: clean.jsonl([change(rows[at]), *(clean.messages(random, n) for n in range(49))])


def nearly(row: Row) -> Row:
    """A row with a word more at its beginning and at its end."""
    asked, answered = row["messages"]
    question, answer = f"Please {asked['content']}", f"{answered['content']} indeed"
    return {"messages": [{**asked, "content": question}, {**answered, "content": answer}]}
