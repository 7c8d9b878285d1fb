"""Weights as pickles, as facebook/opt-125m has them: read without running them, and converted once."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from sluice_api.artifacts import AdapterManifest, model_fingerprint
from sluice_api.reasons import Reason
from sluice_trainer import base_model, pickled
from sluice_trainer.errors import StageError
from sluice_trainer.train.weights.model import load_base
from sluice_trainer.work import work_of
from tests.object_store import ObjectStore, write_secret
from tests.unit.trainer.jobs import ROWS, Job, write_rows
from tests.unit.trainer.opt import POSITIONS, make_opt


@pytest.fixture
def opt(job: Job, tiny_model: Path) -> Job:
    make_opt(job.volumes / "models" / "opt", tiny_model)
    rows = [{"prompt": row["messages"][0]["content"], "completion": row["messages"][1]["content"]} for row in ROWS]
    write_rows(job.volumes / job.dataset, rows)
    training = (("maxSequenceLength", 4096), ("maxSteps", 3), ("learningRate", "1e-2"), ("warmupSteps", 0))
    return replace(job, spec=(("model", {"uri": "pvc://models/opt"}),), training=training)


def test_opt_with_pickled_weights_is_trained_and_exported(opt: Job) -> None:
    folder = opt.volumes / "models" / "opt"
    assert opt.prepare().longest_row <= POSITIONS
    converted = opt.work / "model"
    with safe_open(next(converted.glob("*.safetensors")), framework="pt") as weights:
        names = {*weights.keys()}
        assert {"lm_head.weight", "model.decoder.embed_tokens.weight"} <= names  # tied: both are there, and both copied
        assert {weights.get_slice(name).get_dtype() for name in names} == {"BF16"}
    written = [path.stat().st_mtime_ns for path in sorted(converted.iterdir())]
    opt.prepare()
    assert [path.stat().st_mtime_ns for path in sorted(converted.iterdir())] == written
    assert opt.train().step == 3
    opt.export()
    manifest = AdapterManifest.model_validate_json((opt.work / "export" / "manifest.json").read_bytes())
    assert manifest.base_model_fingerprint == model_fingerprint(folder)  # as an engine of that folder sees it
    assert not (opt.work / "export" / "chat_template.jinja").exists()
    as_people_load_it = AutoModelForCausalLM.from_pretrained(folder)
    PeftModel.from_pretrained(as_people_load_it, opt.work / "export")


def test_rows_are_as_long_as_the_learned_positions(opt: Job) -> None:
    """OPT's table has two rows more than positions, and no row may reach them."""
    write_rows(opt.volumes / opt.dataset, [{"text": "item " * 200}] * 8)
    assert opt.prepare().longest_row == POSITIONS
    assert opt.train().step == 3


def test_converted_weights_that_are_gone_are_named(opt: Job) -> None:
    opt.prepare()
    (opt.work / "model" / "model-00000.safetensors").unlink()
    with pytest.raises(StageError, match=r"which Prepare made of model\.uri pvc://models/opt, are missing or damaged"):
        opt.train()


def test_pickles_that_name_tensors_as_the_inner_model_does(opt: Job) -> None:
    """As facebook/opt-125m's do, which have no head of their own either (transformers#43159)."""
    folder = opt.volumes / "models" / "opt"
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    inner = {name.removeprefix("model."): tensor for name, tensor in state.items() if name != "lm_head.weight"}
    torch.save(inner, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    opt.prepare()
    model = load_base(pickled.locate(opt.stage("Train"), ""), opt.stage("Train").spec, torch.device("cpu"))
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name].to(torch.bfloat16), tensor) for name, tensor in state.items())


def test_pickles_of_an_object_store_are_fetched_by_prepare_alone(
    opt: Job, s3: ObjectStore, secrets: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "prepare"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    write_secret(secrets, "models", s3.secret)
    source = opt.volumes / "models" / "opt"
    shutil.copytree(source, s3.bucket("trainer-models") / "opt", dirs_exist_ok=True)
    model = {"uri": "s3://trainer-models/opt", "credentials": {"secret": "models"}}
    job = replace(opt, spec=(("model", model),))
    (tmp_path / "prepare").mkdir()
    job.prepare()
    assert job.prepared().manifest.base_model_fingerprint == model_fingerprint(source)
    (tmp_path / "train").mkdir()  # the disk of another pod
    monkeypatch.setenv("TMPDIR", str(tmp_path / "train"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert job.train().step == 3
    assert not [*(tmp_path / "train").rglob("*.bin")]


def test_sharded_pickles_are_converted_in_parts(opt: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = opt.volumes / "models" / "opt"
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    (folder / "pytorch_model.bin").unlink()
    names = sorted(state)
    for number, part in enumerate((names[::2], names[1::2]), 1):
        torch.save({name: state[name] for name in part}, folder / f"pytorch_model-0000{number}-of-00002.bin")
    torch.save({"lr": 1e-3}, folder / "training_args.bin")  # no weights: it is not read
    monkeypatch.setattr(pickled, "_FILE_BYTES", 20_000)
    base = pickled.convert(base_model.locate("pvc://models/opt"), work_of(opt.stage("Prepare")))
    assert len(list(base.weights.glob("*.safetensors"))) > 3
    loaded = AutoModelForCausalLM.from_pretrained(base.weights).state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in names)


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Evil, r"pytorch_model\.bin is a pickle that asks for \w+\.system, and code in a pickle is never run"),
        (lambda canary: {"weight": torch.ones(2), "more": Evil(canary)}, r"asks for \w+\.system, and code"),
        (lambda _: [torch.ones(2)], r"pytorch_model\.bin is no table of tensors by name"),
        (lambda _: {"state_dict": {"weight": torch.ones(2)}}, r"pytorch_model\.bin is no table of tensors by name"),
        (lambda _: {3: torch.ones(2)}, r"pytorch_model\.bin is no table of tensors by name"),
        (lambda _: {"weight": torch.empty(2, device="meta")}, r"'weight' is none, or one without its bytes"),
        (lambda _: {"weight": torch.eye(2).to_sparse()}, r"'weight' is none, or one without its bytes"),
        (
            lambda _: {"weight": torch.zeros(1).expand(2**40)},
            r"pytorch_model\.bin: 'weight' claims 4,398,046,511,104 bytes, and 4 are stored of it",
        ),
        (
            lambda _: dict.fromkeys(map(str, range(2000)), torch.zeros(100_000)),
            r"its tensors are more than 8 times as large as its files",
        ),
    ],
)
@pytest.mark.parametrize("archive", [True, False])
def test_pickle_of_anything_but_tensors_is_refused(
    opt: Job, tmp_path: Path, content: Callable[[Path], Any], message: str, archive: bool
) -> None:
    canary = tmp_path / "canary"
    file = opt.volumes / "models" / "opt" / "pytorch_model.bin"
    torch.save(content(canary), file, _use_new_zipfile_serialization=archive)
    with pytest.raises(StageError, match=message) as raised:
        opt.prepare()
    assert raised.value.reason == Reason.MODEL_INVALID
    assert "Save the weights as *.safetensors" in raised.value.message
    assert not canary.exists()
    assert not (opt.work / "model").exists()


def test_pickle_that_is_read_as_a_whole_is_refused_where_memory_would_not_hold_it(
    opt: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = opt.volumes / "models" / "opt" / "pytorch_model.bin"
    weights = torch.load(file, weights_only=True)
    monkeypatch.setattr(pickled, "_MOST_IN_MEMORY", file.stat().st_size // 2)
    torch.save(weights, file, _use_new_zipfile_serialization=False)
    with pytest.raises(StageError, match=r"is of torch before 1\.6, which is read as a whole") as raised:
        opt.prepare()
    assert "Save the weights as *.safetensors" in raised.value.message
    torch.save(weights, file)
    opt.prepare()


@pytest.mark.parametrize("archive", [True, False])
def test_pickle_that_is_cut_short_is_refused(opt: Job, archive: bool) -> None:
    file = opt.volumes / "models" / "opt" / "pytorch_model.bin"
    torch.save(torch.load(file, weights_only=True), file, _use_new_zipfile_serialization=archive)
    file.write_bytes(file.read_bytes()[:10_000])
    with pytest.raises(StageError, match=r"pytorch_model\.bin (can't be read: |is a pickle)"):
        opt.prepare()


def test_code_beside_a_known_model_is_ignored(opt: Job) -> None:
    """As Phi-3's folder has it."""
    folder = opt.volumes / "models" / "opt"
    for file, auto_map in (
        ("config.json", {"AutoConfig": "configuration_opt.OPTConfig", "AutoModelForCausalLM": "modeling_opt.Model"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["tokenization_opt.Slow", None]}),
    ):
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": auto_map}))
    for module in ("configuration_opt", "modeling_opt", "tokenization_opt"):
        (folder / f"{module}.py").write_text("raise SystemExit('the code was run')")
    opt.prepare()
    assert opt.train().step == 3
