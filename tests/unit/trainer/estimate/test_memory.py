"""The formula for GPU memory, compared with trainings that were measured; docs/benchmarks/estimate.md has many more."""

from dataclasses import replace

import pytest
import torch
import transformers as t
from hypothesis import given
from hypothesis import strategies as st

from sluice_api.training import Method
from sluice_trainer.data.estimate.memory import Batch, Setting, memory_of, weight_bytes
from sluice_trainer.data.estimate.shape import ModelShape, shape_of
from tests.unit.trainer.estimate.measured import MODELS, Case, ratio

FEW = {"num_hidden_layers": 2, "vocab_size": 600}


def small(name: str, **changes: object) -> Case:
    """A training of two layers."""
    config = MODELS[name].to_dict() | FEW
    if config.get("layer_types"):
        config["layer_types"] = config["layer_types"][:2]
    return Case(type(MODELS[name])(**config), lengths=(160,), steps=1, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "case",
    [
        small("Llama"),
        small("Llama", dtype="float32", dropout="0.1"),
        small("Llama", method=Method.FULL, checkpointing=True),
        small("Llama", method=Method.FULL, micro_batches=1),
        small("Llama", attention="Eager"),
        small("Llama", targets=("model.layers.1.*",)),
        small("Gemma2", packed=True),
        small("Phi3", method=Method.FULL),
        small("Qwen3 MoE"),
        replace(small("Qwen3", packed=True), lengths=(80, 40, 40)),
    ],
    ids=lambda case: f"{case.model.model_type} {case.method} {case.dtype}",
)
def test_memory_is_within_a_quarter_of_what_was_measured_and_never_far_below(case: Case) -> None:
    assert 0.9 <= ratio(case) <= 1.25


def test_memory_of_four_bit_weights_is_what_bitsandbytes_packs() -> None:
    assert 0.9 <= ratio(small("Llama", method=Method.QLORA)) <= 1.25


@pytest.mark.parametrize(
    ("config", "weights"),
    [
        pytest.param(
            t.LlamaConfig(
                vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32,
                num_attention_heads=32, num_key_value_heads=8,
            ),
            8_030_261_248,
            id="Llama 3 8B",
        ),
        pytest.param(
            t.Qwen2Config(
                vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True,
            ),
            494_032_768,
            id="Qwen2.5 0.5B, whose head is its embedding",
        ),
        pytest.param(
            t.MixtralConfig(
                vocab_size=32_000, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32,
                num_attention_heads=32, num_key_value_heads=8, num_local_experts=8,
            ),
            46_702_792_704,
            id="Mixtral 8x7B, with all its experts",
        ),
    ],
)  # fmt: skip
def test_weights_of_public_models_are_as_many_as_their_cards_say(config: t.PreTrainedConfig, weights: int) -> None:
    assert on_meta(config).weights == weights


def on_meta(config: t.PreTrainedConfig) -> ModelShape:
    """The shape of a model without memory for it."""
    with torch.device("meta"):
        return shape_of(t.AutoModelForCausalLM.from_config(config))


BARE = on_meta(MODELS["Llama"])
LLAMA = BARE.adapted(16)
SETTING = Setting(Method.LORA, 2)


def test_adapter_of_every_layer_is_what_peft_makes() -> None:
    assert Case(MODELS["Llama"]).shape == LLAMA


@given(
    tokens=st.integers(64, 4096),
    packed=st.booleans(),
    method=st.sampled_from(Method),
    size=st.sampled_from((2, 4)),
    dropout=st.booleans(),
)
def test_memory_falls_by_what_is_meant_to_save_it(
    tokens: int, packed: bool, method: Method, size: int, dropout: bool
) -> None:
    shape = BARE if method is Method.FULL else LLAMA
    setting = Setting(method, size, dropout, processes=2)
    batch = Batch(tokens, tokens, packed)
    plain = memory_of(shape, setting, batch)
    assert memory_of(shape, replace(setting, checkpointing=True), batch).total < plain.total
    assert memory_of(shape, setting, Batch(2 * tokens, tokens, packed)).total > plain.total
    assert memory_of(shape, replace(setting, accumulates=False), batch).total <= plain.total
    assert all(part >= 0 for part in vars(plain).values())
    if method is Method.FULL:
        assert memory_of(shape, replace(setting, sharded=True), batch).moments == plain.moments // 2


@pytest.mark.parametrize(
    ("method", "size", "each"), [(Method.LORA, 2, 2.0), (Method.LORA, 4, 4.0), (Method.FULL, 2, 4.0)]
)
def test_weights_take_their_dtype(method: Method, size: int, each: float) -> None:
    assert weight_bytes(LLAMA, Setting(method, size)) == each * LLAMA.weights
