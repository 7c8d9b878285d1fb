"""The adapter that a job gets when it names no layers, on many kinds of model without weights, as Prepare tries it."""

from typing import Any

import pytest
import torch
import transformers as t

from sluice_api.finetunejob import FineTuneJobSpec
from sluice_api.reasons import Reason
from sluice_trainer.errors import StageError
from sluice_trainer.layers import Layers
from sluice_trainer.train.weights.model import with_adapter
from tests.unit.trainer.test_packing_kinds import ALONE, LEAKING, MAMBA, SHAPE, kind

VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
MORE = {
    "Mamba": lambda: t.MambaConfig(vocab_size=300, hidden_size=64, state_size=8, num_hidden_layers=2),
    "Mamba 2": lambda: t.Mamba2Config(
        vocab_size=300, hidden_size=64, state_size=16, num_heads=8, head_dim=16, n_groups=1, num_hidden_layers=2
    ),
    "Falcon Mamba": lambda: t.FalconMambaConfig(vocab_size=300, hidden_size=64, state_size=8, num_hidden_layers=2),
    "Granite hybrid": kind(
        "GraniteMoeHybridConfig", num_local_experts=4, layer_types=["mamba", "attention", "mamba"],
        shared_intermediate_size=64, **MAMBA,
    ),
    "DeepSeek V3": kind(
        "DeepseekV3Config", "head_dim", num_key_value_heads=4, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=16,
        v_head_dim=16, qk_nope_head_dim=16, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
        moe_intermediate_size=32, first_k_dense_replace=1, n_shared_experts=1,
    ),
    "OLMoE": kind("OlmoeConfig", num_experts=4, num_experts_per_tok=2),
    "Gemma 3 with images": lambda: t.Gemma3Config(
        text_config=SHAPE, vision_config={**VISION, "image_size": 28, "patch_size": 14}
    ),
}  # fmt: skip
KINDS = {**ALONE, **LEAKING, **MORE}
WITHOUT = {"GPT-2"}
"""Its layers are no nn.Linear."""


def spec(*targets: str) -> FineTuneJobSpec:
    fields: dict[str, Any] = {
        "model": {"uri": "pvc://models/tiny"},
        "dataset": {"uri": "pvc://datasets/rows.jsonl"},
        "output": {"uri": "pvc://adapters"},
        "lora": {"rank": 4, "targetModules": targets},
    }
    return FineTuneJobSpec.model_validate(fields)


def skeleton(config: t.PreTrainedConfig) -> t.PreTrainedModel:
    with torch.device("meta"):
        return t.AutoModelForCausalLM.from_config(config)


def adapted(config: t.PreTrainedConfig, *targets: str) -> set[str]:
    model = with_adapter(skeleton(config), spec(*targets))
    names = (name.partition(".lora_A.") for name, _ in model.named_parameters(remove_duplicate=False))
    return {layer.removeprefix("base_model.model.") for layer, lora, _ in names if lora}


@pytest.mark.parametrize("name", sorted(KINDS.keys() - WITHOUT))
def test_adapter_goes_beside_the_usual_layers_and_no_other(name: str) -> None:
    layers = Layers.of(skeleton(KINDS[name]()))
    assert adapted(KINDS[name]()) == {*layers.usual}


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("Mamba", "out_proj"),
        ("Mamba 2", "out_proj"),
        ("Falcon Mamba", "out_proj"),
        ("Falcon-H1", "out_proj"),
        ("Nemotron-H", "out_proj"),
        ("Gemma 3 with images", "vision_tower"),
    ],
)
def test_adapter_leaves_out(name: str, left_out: str) -> None:
    layers = Layers.of(skeleton(KINDS[name]()))
    missing = {*layers.linear} - {*layers.usual}
    assert missing
    assert all(left_out in layer for layer in missing)


@pytest.mark.parametrize(("name", "target"), [("Mamba", "out_proj"), ("OPT", "embed_tokens"), ("OLMoE", "down_proj")])
def test_adapter_that_peft_would_refuse_is_refused_by_name(name: str, target: str) -> None:
    with pytest.raises(StageError) as raised:
        adapted(KINDS[name](), target)
    assert raised.value.reason == Reason.MODEL_INVALID
    assert raised.value.message.startswith("lora.targetModules: ")
    assert target in raised.value.message


def test_adapter_of_layers_that_peft_takes_for_experts_is_refused() -> None:
    """PEFT would put one beside the experts' tensor instead, and none beside the layers that have this name too."""
    with pytest.raises(StageError, match=r"PEFT puts no adapter beside model.layers.0.mlp.gate_proj"):
        adapted(KINDS["DeepSeek V3"](), "gate_proj", "up_proj")
