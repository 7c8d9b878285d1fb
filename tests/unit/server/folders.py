"""Models and adapters on disk, made without torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from sluice_api.artifacts import MANIFEST, AdapterManifest, adapter_digest, model_fingerprint
from sluice_server.agent.tensors import folder_tensors

MODULES = ("q_proj", "v_proj", "down_proj")
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 64,
    "bias": "none",
    "target_modules": [*MODULES],
    "use_dora": False,
    "modules_to_save": None,
    "init_lora_weights": True,
}


def make_model(folder: Path, hidden: int = 16, layers: int = 2, seed: int = 0) -> Path:
    """A folder that looks like a Llama's, with weights that nothing computes with."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    shapes = {"q_proj": (hidden, hidden), "v_proj": (hidden // 2, hidden), "down_proj": (hidden, 2 * hidden)}
    weights = {
        f"model.layers.{layer}.{'mlp' if module == 'down_proj' else 'self_attn'}.{module}.weight": random.normal(
            size=shape
        ).astype(np.float32)
        for layer in range(layers)
        for module, shape in shapes.items()
    }
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": hidden}))
    return folder


def make_adapter(folder: Path, model: Path, seed: int = 1, **config: Any) -> Path:
    """A random LoRA adapter of that model, strong enough to change what it says."""
    folder.mkdir(parents=True, exist_ok=True)
    random, rank = np.random.default_rng(seed), config.get("r", CONFIG["r"])
    weights = {}
    for name, tensor in folder_tensors(model).items():
        layer = name.removesuffix(".weight")
        if layer.endswith(MODULES):
            out_features, in_features = tensor.shape
            for part, shape in (("A", (rank, in_features)), ("B", (out_features, rank))):
                weights[f"base_model.model.{layer}.lora_{part}.weight"] = random.normal(size=shape).astype(np.float32)
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    return folder


def write_manifest(folder: Path, model: Path, uri: str = "pvc://models/tiny", **changes: Any) -> None:
    """What an export of ours leaves beside the adapter."""
    manifest = AdapterManifest(
        digest=adapter_digest(folder),
        files={},
        base_model_uri=uri,
        base_model_fingerprint=model_fingerprint(model),
        rank=4,
        target_modules=MODULES,
        steps=1,
    )
    (folder / MANIFEST).write_text(manifest.model_copy(update=changes).to_json())
