"""A model as facebook/opt-125m is: learned positions, tied embeddings, pickled weights, no chat template."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, OPTConfig, OPTForCausalLM

POSITIONS = 64


def make_opt(folder: Path, tokenizer: Path, positions: int = POSITIONS) -> Path:
    """An OPT of random weights in bfloat16: learned positions, tied embeddings, pickles, and no chat template."""
    folder.mkdir(parents=True)
    for file in tokenizer.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    torch.manual_seed(0)
    size = {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 128, "num_hidden_layers": 2}
    entries = len(AutoTokenizer.from_pretrained(folder))
    ids = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 2}
    config = OPTConfig(
        vocab_size=entries, num_attention_heads=2, max_position_embeddings=positions, dtype="bfloat16", **size, **ids
    )
    model = OPTForCausalLM(config).to(torch.bfloat16)
    config.architectures = ["OPTForCausalLM"]
    config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder
