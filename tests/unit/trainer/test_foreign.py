"""Every setting that transformers, peft and SAGE know has a fate here, and each becomes what the tables say."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pytest
from peft import LoraConfig
from pydantic import TypeAdapter
from transformers import TrainingArguments

from sluice_api.finetunejob import FineTuneJobSpec
from sluice_api.foreign import LORA_CONFIG, SAGE, TRAINING_ARGUMENTS, Fate, Foreign
from sluice_api.translate import translate

TABLES = {"TrainingArguments": TRAINING_ARGUMENTS, "LoraConfig": LORA_CONFIG, "SAGE": SAGE}
ADDRESSES = {
    "model": {"uri": "pvc://models/m"},
    "dataset": {"uri": "pvc://data/rows.jsonl"},
    "output": {"uri": "pvc://out/o"},
}


@pytest.mark.parametrize(("theirs", "table"), [(TrainingArguments, TRAINING_ARGUMENTS), (LoraConfig, LORA_CONFIG)])
def test_foreign_table_has_every_setting_of_the_installed_library(theirs: Any, table: Mapping[str, Foreign]) -> None:
    assert {field.name for field in fields(theirs)} - set(table) == set()


@pytest.mark.parametrize("table", TABLES)
def test_foreign_table_names_fields_of_ours(table: str) -> None:
    schema = TypeAdapter(FineTuneJobSpec).json_schema(by_alias=True)

    def known(path: str) -> bool:
        part, _, name = path.partition(".")
        if not name:
            return part in schema["properties"]
        reference = schema["properties"][part].get("$ref", "").rpartition("/")[2]
        return name in schema["$defs"][reference]["properties"]

    assert [path for path in {foreign.ours for foreign in TABLES[table].values()} if path and not known(path)] == []


@pytest.mark.parametrize(
    ("table", "theirs", "ours"),
    [
        ("TrainingArguments", {"num_train_epochs": 2.0}, {"training": {"epochs": 2}}),
        ("TrainingArguments", {"max_steps": -1}, {}),
        ("TrainingArguments", {"learning_rate": 1e-4}, {"training": {"learningRate": "0.0001"}}),
        ("TrainingArguments", {"lr_scheduler_type": "linear"}, {"training": {"schedule": "Linear"}}),
        ("TrainingArguments", {"bf16": True}, {"training": {"dtype": "bfloat16"}}),
        ("TrainingArguments", {"gradient_checkpointing": True}, {"training": {"gradientCheckpointing": "Always"}}),
        (
            "TrainingArguments",
            {"load_best_model_at_end": True, "eval_steps": 5},
            {"training": {"exportedCheckpoint": "Best", "evaluateEverySteps": 5}},
        ),
        ("TrainingArguments", {"load_best_model_at_end": False}, {"training": {"exportedCheckpoint": "Last"}}),
        ("TrainingArguments", {"eval_strategy": "steps", "eval_steps": 5}, {"training": {"evaluateEverySteps": 5}}),
        ("TrainingArguments", {"eval_strategy": "no", "eval_steps": 5}, {"training": {}}),
        (
            "TrainingArguments",
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
            {"training": {"microBatchSize": 4, "batchSize": 16}},
        ),
        (
            "LoraConfig",
            {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "bias": "none", "task_type": "CAUSAL_LM"},
            {"lora": {"rank": 16, "alpha": 32, "dropout": "0.05"}},
        ),
        ("LoraConfig", {"target_modules": "all-linear", "use_rslora": True}, {"lora": {"rankStabilized": True}}),
        ("LoraConfig", {"target_modules": ["q_proj", "v_proj"]}, {"lora": {"targetModules": ["q_proj", "v_proj"]}}),
        (
            "SAGE",
            {"lora_rank": 8, "epochs": 3, "batch_size": 4, "gradient_accumulation_steps": 4},
            {"lora": {"rank": 8}, "training": {"epochs": 3, "microBatchSize": 4, "batchSize": 32}},
        ),
        ("SAGE", {"gradient_accumulation_steps": 2}, {"training": {"microBatchSize": 4, "batchSize": 16}}),
        ("SAGE", {"quantization_bits": 4}, {"method": "QLoRA"}),
        ("SAGE", {"quantization_bits": 0}, {}),
    ],
)
def test_foreign_settings_are_translated(table: str, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """On two GPUs; what comes out is a spec that is taken."""
    found = translate(theirs, TABLES[table], gpus=2)
    assert (found.spec, found.refused) == (ours, [])
    FineTuneJobSpec.model_validate({**ADDRESSES, **found.spec})


@pytest.mark.parametrize(
    ("table", "theirs", "refusal"),
    [
        ("TrainingArguments", {"fp16": True}, "fp16: True can't be had. Small gradients vanish in float16"),
        ("TrainingArguments", {"deepspeed": "z.json"}, "deepspeed: 'z.json' can't be had. DeepSpeed is not used."),
        ("TrainingArguments", {"lr_scheduler_type": "cubic"}, "lr_scheduler_type: 'cubic' can't be had. Schedules are"),
        ("TrainingArguments", {"eval_strategy": "epoch"}, "eval_strategy: 'epoch' can't be had. Write steps, and how"),
        (
            "TrainingArguments",
            {"torch_compile_mode": "max-autotune"},
            "torch_compile_mode: 'max-autotune' can't be had",
        ),
        ("TrainingArguments", {"num_train_epochs": 0.5}, "num_train_epochs: 0.5 can't be had. Write a whole number."),
        (
            "TrainingArguments",
            {"lerning_rate": 1},
            "lerning_rate: no such setting is known. Did you mean learning_rate",
        ),
        ("LoraConfig", {"use_dora": True}, "use_dora: True can't be had. vLLM can't load such an adapter."),
        ("LoraConfig", {"target_modules": ".*proj"}, "target_modules: '.*proj' can't be had. Write a list of names"),
        ("SAGE", {"quantization_bits": 8}, "quantization_bits: 8 can't be had. Write 4."),
    ],
)
def test_foreign_setting_that_is_refused_names_the_nearest(table: str, theirs: dict[str, Any], refusal: str) -> None:
    found = translate(theirs, TABLES[table])
    assert found.spec == {}
    assert [text.startswith(refusal) for text in found.refused] == [True]


@pytest.mark.parametrize("table", TABLES)
def test_foreign_settings_with_values_that_ask_for_nothing(table: str) -> None:
    """Of a refused setting: false, null, and what is the default elsewhere."""
    for name, foreign in TABLES[table].items():
        if foreign.fate is Fate.REFUSED:
            for value in foreign.harmless:
                assert translate({name: value}, TABLES[table]).refused == [], (name, value)


def test_foreign_setting_without_meaning_is_noted() -> None:
    found = translate({"report_to": "wandb", "logging_steps": 1}, TRAINING_ARGUMENTS)
    assert (found.spec, found.refused, len(found.ignored)) == ({}, [], 2)
    assert found.ignored[0].startswith("report_to: ignored. Reports, metrics and logs are the operator's")


def test_foreign_load_best_model_needs_evaluations() -> None:
    found = translate({"load_best_model_at_end": True, "eval_steps": 5, "eval_strategy": "no"}, TRAINING_ARGUMENTS)
    assert (found.spec, len(found.refused)) == ({"training": {}}, 1)
    assert found.refused[0].startswith("load_best_model_at_end: True can't be had without eval_steps")
