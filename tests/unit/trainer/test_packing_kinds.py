"""The packing check on many kinds of model, in both dtypes: packed where each row is alone, padded where one leaks.

All are tiny and random, with weights so large that what leaks shows in the loss. A real model's rounding is another,
which is why the check compares with the rounding that it measures (packing_check.py).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t

from sluice_trainer.context import rope_boundary
from sluice_trainer.token_rows import TokenRow, TokenRows
from sluice_trainer.train.batches import MicroBatch, make_micro_batch, positions_of_batches
from sluice_trainer.train.loss import TokenLoss
from sluice_trainer.train.packing import Batching
from sluice_trainer.train.trials.packing_check import packing_obstacle

CPU = torch.device("cpu")
MOST = 200

SHAPE = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": None,
    "eos_token_id": 0, "initializer_range": 0.3,
}  # fmt: skip
WINDOWS = ("sliding_attention", "full_attention", "sliding_attention")
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 16}


def kind(name: str, *absent: str, **more: Any) -> Callable[[], t.PreTrainedConfig]:
    """A configuration of the usual shape, without some fields of it, and with others."""
    fields = {key: value for key, value in {**SHAPE, **more}.items() if key not in absent}
    return lambda: getattr(t, name)(**fields)


def longrope() -> t.PreTrainedConfig:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    return kind(
        "Phi3Config", "head_dim", original_max_position_embeddings=64,
        rope_parameters={**rope, "original_max_position_embeddings": 64},
    )()  # fmt: skip


ALONE = {
    "Llama": kind("LlamaConfig"),
    "Phi-3": kind("Phi3Config"),
    "Phi-3 with longrope": longrope,
    "Phi-MoE": kind("PhimoeConfig", num_local_experts=4, num_experts_per_tok=2),
    "OLMo 3": kind("Olmo3Config", sliding_window=24),
    "Gemma 3": kind("Gemma3TextConfig", sliding_window=24, layer_types=[*WINDOWS]),
    "Qwen3-MoE": kind("Qwen3MoeConfig", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32),
    "Mixtral": kind("MixtralConfig", num_local_experts=4, sliding_window=24),
    "Granite": kind("GraniteConfig", logits_scaling=8.0, embedding_multiplier=12.0, attention_multiplier=0.0625),
    "Cohere 2": kind("Cohere2Config", logit_scale=0.0625, sliding_window=24, layer_types=[*WINDOWS]),
    "GPT-2": lambda: t.GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=4, initializer_range=0.3),
    "GPT-NeoX": kind("GPTNeoXConfig", "head_dim", "num_key_value_heads"),
    "DiffLlama": kind("DiffLlamaConfig"),
    "StarCoder 2": kind("Starcoder2Config", "head_dim", sliding_window=24),
}
LEAKING = {
    "OPT": lambda: t.OPTConfig(
        vocab_size=300, hidden_size=64, num_hidden_layers=2, ffn_dim=128, num_attention_heads=4, word_embed_proj_dim=64,
        init_std=0.3,
    ),
    "Falcon": lambda: t.FalconConfig(
        vocab_size=300, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.3
    ),
    "BioGPT": kind("BioGptConfig", "head_dim", "num_key_value_heads", pad_token_id=1),
    "Falcon-H1": kind("FalconH1Config", "head_dim", mamba_d_ssm=128, **MAMBA),
    "Bamba": kind("BambaConfig", "head_dim", attn_layer_indices=[1], **MAMBA),
    "Jamba": kind(
        "JambaConfig", "head_dim", attn_layer_period=3, attn_layer_offset=1, expert_layer_period=2,
        expert_layer_offset=1, num_experts=4, mamba_d_state=8, mamba_dt_rank=8, use_mamba_kernels=False,
    ),
    "Nemotron-H": kind(
        "NemotronHConfig", mamba_num_heads=4, mamba_head_dim=32, ssm_state_size=16, n_groups=1, chunk_size=16
    ),
    "RecurrentGemma": kind(
        "RecurrentGemmaConfig", "head_dim", "initializer_range", lru_width=64, attention_window_size=64
    ),
    "LFM2": kind("Lfm2Config", layer_types=["conv", "full_attention", "conv"]),
    "Qwen3-Next": kind(
        "Qwen3NextConfig", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
        shared_expert_intermediate_size=32, layer_types=["linear_attention", "full_attention", "linear_attention"],
        linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=16, linear_value_head_dim=16,
    ),
    "MiniMax": kind(
        "MiniMaxConfig", num_local_experts=2, layer_types=["linear_attention", "full_attention", "linear_attention"],
        block_size=16,
    ),
    "Zamba2": kind(
        "Zamba2Config", "head_dim", "initializer_range", num_hidden_layers=4,
        layers_block_type=["mamba", "mamba", "hybrid", "mamba"], mamba_d_state=16, mamba_d_conv=4, mamba_expand=2,
        mamba_ngroups=1, n_mamba_heads=8, num_mem_blocks=1, use_mem_rope=False, chunk_size=16,
    ),
    "Llama 4": kind(
        "Llama4TextConfig", attention_chunk_size=48, num_local_experts=2, intermediate_size_mlp=64,
        layer_types=["chunked_attention", "chunked_attention", "full_attention"], no_rope_layers=[1, 1, 0],
    ),
}  # fmt: skip


def rows(*lengths: int) -> TokenRows:
    draw = np.random.default_rng(1)
    made = (TokenRow(draw.integers(3, 300, n, np.int32), np.ones(n, np.uint8)) for n in lengths)
    return TokenRows.of(made)


def model_of(config: t.PreTrainedConfig, dtype: torch.dtype) -> TokenLoss:
    torch.manual_seed(0)
    return TokenLoss(t.AutoModelForCausalLM.from_config(config, dtype=dtype))


def obstacle(config: t.PreTrainedConfig, dtype: torch.dtype) -> str | None:
    boundary = rope_boundary(config.to_dict())
    return packing_obstacle(model_of(config, dtype), rows(90, 40, 75, 33), CPU, MOST, boundary)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ALONE)
def test_rows_are_packed_where_each_is_alone(name: str, dtype: torch.dtype) -> None:
    assert obstacle(ALONE[name](), dtype) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LEAKING)
def test_rows_are_not_packed_where_one_leaks_into_the_next(name: str, dtype: torch.dtype) -> None:
    assert "a row is not alone in a pack" in str(obstacle(LEAKING[name](), dtype))


@pytest.mark.parametrize("lengths", [(96, 96, 30, 40, 35, 41), (20, 19, 18, 17, 20, 16)])
def test_rows_that_cross_a_chunk_of_attention_only_in_a_full_pack_are_found(lengths: tuple[int, ...]) -> None:
    """Two rows of whole chunks, or two short ones, show nothing: a third row begins in the middle of a chunk."""
    loss = model_of(LEAKING["Llama 4"](), torch.float32)
    assert packing_obstacle(loss, rows(*lengths[:2]), CPU, 3 * max(lengths)) is None
    assert "rows are not alone in a full pack" in str(packing_obstacle(loss, rows(*lengths), CPU, 6 * max(lengths)))


@pytest.mark.parametrize("packed", [True, False])
def test_rows_on_either_side_of_the_rope_boundary_share_no_micro_batch(*, packed: bool) -> None:
    """transformers chooses longrope's factors by the longest row of a micro-batch: up to 7 nats for a token."""
    loss, data = model_of(longrope(), torch.float32), rows(90, 40, 65, 64, 30)
    loss.model.eval()
    batching = Batching(packed, 1000, boundary=rope_boundary(longrope().to_dict()))
    (batches,) = positions_of_batches(data, range(len(data)), batching, 1)
    assert sorted(sorted(batch) for batch in batches) == [[0, 2], [1, 3, 4]]
    with torch.no_grad():
        for batch in batches:
            together = loss.summed(make_micro_batch([data[index] for index in batch], batching, CPU))
            alone = sum(loss.summed(MicroBatch.of([data[index]], CPU)) for index in batch)
            torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-3)
        mixed = loss.summed(make_micro_batch([data[0], data[1]], batching, CPU))
        alone = sum(loss.summed(MicroBatch.of([data[index]], CPU)) for index in (0, 1))
        assert abs(mixed - alone) > 1, "else this test would show nothing"
