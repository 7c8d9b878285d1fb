"""A training's memory, measured on a CPU by counting the tensors that live: what the formula is compared with."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers as t

from sluice_api.finetunejob import FineTuneJobSpec
from sluice_api.training import Method
from sluice_trainer.base_model import BaseModel
from sluice_trainer.data.estimate.memory import Batch, Setting, memory_of
from sluice_trainer.data.estimate.shape import ModelShape, shape_of
from sluice_trainer.token_rows import TokenRow
from sluice_trainer.train.batches import MicroBatch
from sluice_trainer.train.loss import TokenLoss
from sluice_trainer.train.trials.fused_loss import verify_fused_loss
from sluice_trainer.train.trials.memory import peak_bytes
from sluice_trainer.train.weights.model import DTYPES, Model, autocast_dtype, load, trainable, with_adapter

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """One training of a few steps."""

    model: t.PreTrainedConfig
    method: Method = Method.LORA
    dtype: str = "bfloat16"
    lengths: tuple[int, ...] = (256,)
    packed: bool = False
    checkpointing: bool = False
    dropout: str = "0.0"
    targets: tuple[str, ...] = ()
    attention: str = "Auto"
    steps: int = 2
    micro_batches: int = 2

    @property
    def spec(self) -> FineTuneJobSpec:
        """The job."""
        return spec(
            method=self.method,
            lora={"dropout": self.dropout, "targetModules": self.targets},
            training={"dtype": self.dtype, "attention": self.attention},
        )

    @property
    def shape(self) -> ModelShape:
        """Of the model without weights, as Prepare reads it."""
        with torch.device("meta"):
            model = t.AutoModelForCausalLM.from_config(self.model, attn_implementation=self._attention)
        return shape_of(model if self.method is Method.FULL else with_adapter(model, self.spec))

    @property
    def estimated(self) -> int:
        """Bytes by the formula."""
        longest = max(self.lengths)
        tokens = sum(self.lengths) if self.packed else longest * len(self.lengths)
        setting = Setting(
            self.method,
            DTYPES[self.dtype].itemsize,
            has_dropout=float(self.dropout) > 0,
            checkpointing=self.checkpointing,
            accumulates=self.micro_batches > 1,
            on_gpu=False,
        )
        return memory_of(self.shape, setting, Batch(tokens, longest, self.packed)).total

    def measured(self) -> int:
        """The most bytes of tensors that ever live together, weights included."""
        model = self.model_loaded()
        draw = np.random.default_rng(0)
        words = self.model.get_text_config().vocab_size
        made = [TokenRow(draw.integers(1, words, n, np.int32), np.ones(n, np.uint8)) for n in self.lengths]
        batch = MicroBatch.packed(made, CPU) if self.packed else MicroBatch.of(made, CPU)
        first = MicroBatch.of(made, CPU)
        loss = verify_fused_loss(
            TokenLoss(model, autocast_dtype(self.spec)), first.input_ids[:1, :32], first.loss_mask[:1, :32]
        )
        assert loss.fused_head is not None
        model.train()
        if self.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        storages = {weight.untyped_storage()._cdata: weight.untyped_storage() for weight in model.parameters()}
        weights = sum(storage.nbytes() for storage in storages.values())
        return int(weights + peak_bytes(model, lambda: self._train(loss, batch)))

    def _train(self, loss: TokenLoss, batch: MicroBatch) -> None:
        trained = list(trainable(loss.model).values())
        optimizer = torch.optim.AdamW(trained, fused=True)
        for weight in trained:  # the trainer allocates the moments before its first step
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
        optimizer.zero_grad()
        for _ in range(self.steps):
            for _ in range(self.micro_batches):
                loss.summed(batch).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()

    @property
    def _attention(self) -> str | None:
        return {"SDPA": "sdpa", "Eager": "eager"}.get(self.attention)

    def model_loaded(self) -> Model:
        """The model as the trainer loads it."""
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            t.AutoModelForCausalLM.from_config(self.model).save_pretrained(folder)
            base = BaseModel("pvc://models/m", Path(folder), Path(folder), "", 0, None, None, fingerprint="")
            return load(base, self.spec, CPU)


def spec(**changes: object) -> FineTuneJobSpec:
    """A job's spec."""
    addresses = {"model": "pvc://models/m", "dataset": "pvc://datasets/rows.jsonl", "output": "pvc://out/o"}
    return FineTuneJobSpec.model_validate({name: {"uri": uri} for name, uri in addresses.items()} | changes)


def ratio(case: Case) -> float:
    """Formula over measured."""
    return case.estimated / case.measured()


_SHAPE = {
    "vocab_size": 2000, "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 4096, "pad_token_id": 0, "bos_token_id": None,
    "eos_token_id": 0,
}  # fmt: skip
_WINDOW = {"sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 3}
_PLAIN = {
    "vocab_size": 2000, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}  # fmt: skip

MODELS: dict[str, t.PreTrainedConfig] = {
    "Llama": t.LlamaConfig(**_SHAPE),
    "Qwen2": t.Qwen2Config(**_SHAPE),
    "Qwen3": t.Qwen3Config(**_SHAPE),
    "Gemma2": t.Gemma2Config(**_SHAPE, **_WINDOW),
    "Gemma3": t.Gemma3TextConfig(**_SHAPE, **_WINDOW),
    "Mistral": t.MistralConfig(**_SHAPE, sliding_window=None),
    "Phi3": t.Phi3Config(**_SHAPE),
    "Olmo2": t.Olmo2Config(**_SHAPE),
    "Granite": t.GraniteConfig(**_SHAPE),
    "Phi": t.PhiConfig(**_PLAIN),
    "GPT-NeoX": t.GPTNeoXConfig(**_PLAIN),
    "OPT": t.OPTConfig(
        vocab_size=2000, hidden_size=128, ffn_dim=512, num_hidden_layers=6, num_attention_heads=4,
        max_position_embeddings=4096, word_embed_proj_dim=128,
    ),
    "Qwen3 MoE": t.Qwen3MoeConfig(**_SHAPE, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=96),
    "Mixtral": t.MixtralConfig(**_SHAPE, num_local_experts=4, num_experts_per_tok=2),
    "LFM2": t.Lfm2Config(**_SHAPE, layer_types=["conv", "full_attention"] * 3),
}  # fmt: skip
