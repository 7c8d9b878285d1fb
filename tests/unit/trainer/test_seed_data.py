"""The data and the model of each document that the project was born from, as they come: prepared, trained, exported.

A few rows stand for each; shape, names and place are the documents' own. The hub is a stand-in that speaks its API, the
object store a real S3 server.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from sluice_files import hub as hub_module
from tests.hub import Hub, hub
from tests.object_store import ObjectStore, write_secret
from tests.unit.trainer.clean import array, jsonl, parquet, table_csv
from tests.unit.trainer.jobs import Job
from tests.unit.trainer.opt import make_opt


@dataclass(frozen=True)
class Seed:
    """A document's data."""

    uri: str
    content: bytes
    file: str = ""
    """Of a repository of the hub: how it calls its file."""
    dataset: dict[str, Any] = field(default_factory=dict)
    model: str = "pvc://models/tiny"


TASKS = [("Give three tips.", "", "Eat. Sleep. Move."), ("Classify the word.", "apple", "A fruit."), ("Hi?", "", "Hi!")]
SEEDS = {
    "alpaca_data.json, one array": Seed(
        "pvc://datasets/alpaca_data.json",
        array([{"instruction": ask, "input": about, "output": answer} for ask, about, answer in TASKS]),
    ),
    "Dolly's field names": Seed(
        "hf://datasets/databricks/databricks-dolly-15k",
        jsonl([{"instruction": a, "context": b, "response": c, "category": "open_qa"} for a, b, c in TASKS]),
        file="databricks-dolly-15k.jsonl",
    ),
    "OpenOrca's Parquet": Seed(
        "hf://datasets/Open-Orca/OpenOrca",
        parquet([{"id": f"niv.{a}", "system_prompt": "Be brief.", "question": a, "response": c} for a, _, c in TASKS]),
        file="1M-GPT4-Augmented.parquet",
    ),
    "the agent platform's CSV on S3": Seed(
        "s3://datasets/training_data.csv",
        table_csv([{"prompt": ask, "completion": answer} for ask, _, answer in TASKS]),
        dataset={"credentials": {"secret": "store"}},
    ),
    "ServerlessLLM's tokenization_field and opt-125m": Seed(
        "hf://datasets/fka/awesome-chatgpt-prompts",
        table_csv([{"act": answer, "prompt": f"I want you to {ask}"} for ask, _, answer in TASKS]),
        file="prompts.csv",
        dataset={"fields": {"text": "prompt"}, "split": "train"},
        model="hf://facebook/opt-125m",
    ),
}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(hub_module, "_RETRIES", 0)
    with hub(tmp_path / "hub") as stand_in:
        yield stand_in


@pytest.mark.parametrize("name", SEEDS)
def test_data_and_model_of_a_seed_document_run_as_they_come(
    name: str, job: Job, tiny_model: Path, s3: ObjectStore, secrets: Path, served: Hub, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    write_secret(secrets, "store", s3.secret)
    write_secret(secrets, "hub", served.secret)
    seed = SEEDS[name]
    dataset: dict[str, Any] = {"uri": seed.uri, "validationSplit": "0%", **seed.dataset}
    model: dict[str, Any] = {"uri": seed.model}
    kind, _, path = seed.uri.partition("://")
    if kind == "hf":
        served.add(path.removeprefix("datasets/"), {seed.file: seed.content}, "datasets")
        dataset["credentials"] = {"secret": "hub"}
    else:
        folder = s3.bucket("datasets") if kind == "s3" else job.volumes / "datasets"
        (folder / path.removeprefix("datasets/")).write_bytes(seed.content)
    if seed.model.startswith("hf://"):
        opt = make_opt(tmp_path / "opt", tiny_model)
        served.add("facebook/opt-125m", {file.name: file.read_bytes() for file in opt.iterdir()})
        model["credentials"] = {"secret": "hub"}
    training = (("maxSteps", 2), ("batchSize", 2), ("warmupSteps", 0))
    job = replace(job, spec=(("dataset", dataset), ("model", model)), training=training)
    assert job.prepare().rows == len(TASKS)
    assert job.train().step == 2
    assert job.export().startswith("sha256:")
