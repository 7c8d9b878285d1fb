"""Weights that are not those of the model's config.json are refused by Prepare: transformers would make them up."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

from sluice_api.artifacts import weight_files
from sluice_trainer import base_model
from sluice_trainer.data.weights import check_weights
from sluice_trainer.train.weights.model import without_weights
from tests.unit.trainer.jobs import Job
from tests.unit.trainer.planting import Weights, cut_weights, of_weights
from tests.unit.trainer.test_adapter_kinds import KINDS
from tests.unit.trainer.test_unfit_model import INDEX, configure, folder, refused

__all__ = ["folder"]

UP = "model.layers.1.mlp.up_proj.weight"


def without(name: str) -> Callable[[Path], None]:
    return of_weights(lambda weights: {key: weight for key, weight in weights.items() if key != name})


def in_shards(folder: Path) -> None:
    model = t.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="90KB")


def without_a_shard(folder: Path) -> None:
    in_shards(folder)
    (folder / "model-00002-of-00006.safetensors").unlink()


def without_index(folder: Path) -> None:
    in_shards(folder)
    (folder / INDEX).unlink()


def with_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))


def of_an_adapter(folder: Path) -> None:
    with_adapter(folder)
    (folder / "config.json").unlink()


def fp8(weights: Weights) -> Weights:
    """As NVIDIA's ModelOpt writes it, with hf_quant_config.json in the place of config.json's quantization_config."""
    scales = {f"{name}_scale": torch.tensor(3.0) for name in weights if "proj" in name}
    return {n: w.to(torch.float8_e4m3fn) if "proj" in n else w for n, w in weights.items()} | scales


def gptq(weights: Weights) -> Weights:
    """As AutoGPTQ wrote it, with quantize_config.json."""
    return {n.replace("proj.weight", "proj.qweight"): w for n, w in weights.items()}


CASES: list[tuple[str, Callable[[Path], Any], str]] = [
    (
        "of a compiled model",
        of_weights(lambda weights: {f"_orig_mod.{name}": weight for name, weight in weights.items()}),
        "its files lack lm_head.weight, model.embed_tokens.weight, model.layers.0.input_layernorm.weight and 18 more, "
        "and it has _orig_mod.lm_head.weight, _orig_mod.model.embed_tokens.weight, ",
    ),
    ("one is not there", without(UP), f"its files lack {UP}. They would be made up at random. Save the whole model "),
    ("no head, and not tied", without("lm_head.weight"), "its files lack lm_head.weight. They would be made up"),
    ("GPTQ", of_weights(gptq), "its files lack model.layers.0.mlp.down_proj.weight, "),
    ("FP8", of_weights(fp8), "its weights are quantized (F8_E4M3). Training needs the unquantized ones."),
    (
        "of another shape",
        lambda folder: configure(folder, intermediate_size=256),
        "model.layers.0.mlp.down_proj.weight is of the shape [64, 128] in its files, and of [64, 256] by its config",
    ),
    (
        "a file is not there",
        without_a_shard,
        f"{INDEX} names model-00002-of-00006.safetensors, and there is no such file. Copy the model again.",
    ),
    (
        "no index",
        without_index,
        "it has model-00001-of-00006.safetensors, model-00002-of-00006.safetensors, model-00003-of-00006.safetensors "
        f"and 3 more, and neither model.safetensors nor {INDEX}, which says what is in them. Add it.",
    ),
    ("the end is cut off", cut_weights, "model.safetensors is no safetensors file, or is cut off. Restore it."),
    (
        "an adapter beside",
        with_adapter,
        "an adapter lies beside the model (adapter_config.json), and transformers would put it on. Remove its files; ",
    ),
    ("an adapter alone", of_an_adapter, "it is an adapter, for the model org/base. Name that model; or merge "),
]


@pytest.mark.parametrize(("case", "change", "says"), CASES, ids=[case for case, _, _ in CASES])
def test_weights_of_another_model_are_refused(
    job: Job, folder: Path, case: str, change: Callable[[Path], Any], says: str
) -> None:
    change(folder)
    message = refused(job)
    assert message.startswith("model.uri pvc://models/tiny")
    assert says in message


def test_weights_that_tie_the_head_need_none(job: Job, folder: Path) -> None:
    without("lm_head.weight")(folder)
    configure(folder, tie_word_embeddings=True)
    assert job.prepare().rows == 36


@pytest.mark.parametrize("name", sorted(KINDS))
def test_weights_that_transformers_saved_are_whole(tmp_path: Path, volumes: Path, name: str) -> None:
    """Of each family: it renames some of them, merges others, and knows which need not be there."""
    folder = volumes / "models" / "family"
    t.AutoModelForCausalLM.from_config(KINDS[name]()).save_pretrained(folder)
    (folder / "tokenizer.json").touch()
    base = base_model.locate("pvc://models/family")
    check_weights(base, without_weights(base))


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (["model-1.safetensors", "consolidated.safetensors", "pytorch_model.bin"], ["model-1.safetensors"]),
        (["consolidated.safetensors", "pytorch_model.bin"], ["pytorch_model.bin"]),
        (["consolidated-1-of-2.safetensors", "config.json"], []),
    ],
)
def test_weights_that_a_repository_has_twice_are_fetched_once(names: list[str], weights: list[str]) -> None:
    assert weight_files(names) == weights
