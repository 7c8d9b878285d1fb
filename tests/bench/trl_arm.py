"""One training by TRL, as a process of its own; each line of its output is one event as JSON, as our trainer's are.

python -m tests.bench.trl_arm MODEL ROWS OUTPUT {tuned,defaults} PACKS STEPS

ROWS is our Prepare's folder prepared/: the same tokens and the same loss mask. STEPS is -1 for all.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback, TrainerControl, TrainerState
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from sluice_trainer.token_rows import TRAINING, read_store
from tests.bench import train_task

IGNORED = -100


class Told(SFTTrainer):
    """TRL's trainer, and what it feeds to the model."""

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        if self.state.global_step == 0:
            tell("begin")
        batches, loss_tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.step_tokens = sum(real_tokens(batch) for batch in batches)
        self.step_loss_tokens = int(loss_tokens)
        return batches, loss_tokens


class Teller(TrainerCallback):
    """Says when a step has ended, and its loss."""

    def __init__(self) -> None:
        self.trainer: Told | None = None

    def on_step_end(self, args: SFTConfig, state: TrainerState, control: TrainerControl, **_: object) -> None:
        assert self.trainer is not None
        tell("step", tokens=self.trainer.step_tokens, loss_tokens=self.trainer.step_loss_tokens)

    def on_log(
        self, args: SFTConfig, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: object
    ) -> None:
        if "loss" in logs:
            tell("loss", loss=float(logs["loss"]))


def tell(event: str, **fields: float) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def real_tokens(batch: dict[str, torch.Tensor]) -> int:
    """Without padding: packed rows have none, and no mask either."""
    mask = batch.get("attention_mask")
    return batch["input_ids"].numel() if mask is None else int(mask.sum())


def rows_of(prepared: Path) -> Dataset:
    """Tokenised rows, as TRL takes them."""
    store = read_store(prepared, ())
    rows = [store[index] for index in np.load(prepared / TRAINING)]
    labels = [np.where(row.loss_mask == 1, row.input_ids, IGNORED).tolist() for row in rows]
    return Dataset.from_dict({"input_ids": [row.input_ids.tolist() for row in rows], "labels": labels})


def settings(output: str, arm: str, packs: int, steps: int) -> SFTConfig:
    """Our job's own settings where they decide the result; float32 everywhere, which alone no default decides."""
    same: dict[str, Any] = {
        "output_dir": output,
        "num_train_epochs": train_task.EPOCHS,
        "max_steps": steps,
        "learning_rate": train_task.LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "seed": train_task.SEED,
        "max_length": train_task.LONGEST_ROW,
        "bf16": False,
        "model_init_kwargs": {"dtype": "float32"},
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    tuned: dict[str, Any] = {
        "packing": True,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": packs,
        "dataloader_pin_memory": False,
    }
    if arm == "defaults":
        return SFTConfig(**same)
    return SFTConfig(**same, **tuned)


def main() -> None:
    model, rows, output, arm, packs, steps = sys.argv[1:]
    teller = Teller()
    trainer = Told(
        model=model,
        args=settings(output, arm, int(packs), int(steps)),
        train_dataset=rows_of(Path(rows)),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(
            r=train_task.RANK, lora_alpha=train_task.ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[teller],
    )
    teller.trainer = trainer
    trainer.remove_callback(PrinterCallback)
    trainer.train()


if __name__ == "__main__":
    main()
