"""An adapter on disk: the two files that PEFT and vLLM read."""

import json
from pathlib import Path

from peft import PeftModel

from sluice_api.artifacts import ADAPTER_FILES


def write_adapter(model: PeftModel, folder: Path) -> tuple[str, ...]:
    """Write the two files beside the model card, the same bytes each time; returns the names of the adapted layers."""
    card = folder / "README.md"
    ours = card.read_bytes()
    # Without False, PEFT asks the hub whether the vocabulary has grown.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    card.write_bytes(ours)  # PEFT names this pod's disk as the place of the base model
    config_file = folder / ADAPTER_FILES[0]
    config = json.loads(config_file.read_text())
    config["target_modules"] = sorted(config["target_modules"])  # PEFT writes a set, in any order
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return tuple(config["target_modules"])
