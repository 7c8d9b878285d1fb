"""How a job learns: the settings of its adapter and of the training itself. Each name, default and bound is here only.

What frameworks call these settings, and what becomes of theirs that are missing here, is in foreign.py.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from sluice_api.model import Decimal, Model, Remedy
from sluice_api.resource import Rule, bound, rules


class Method(StrEnum):
    """Which weights learn."""

    LORA = "LoRA"
    QLORA = "QLoRA"
    FULL = "Full"


LayerName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_.*?\[\]-]+$", max_length=128),
    Remedy("write a layer's last name, such as q_proj, or a pattern of whole names, such as 'model.layers.1?.*'"),
]


MAX_RANK = 512
"""The highest that vLLM serves."""


class Lora(Model):
    """Low-rank adaptation of linear layers."""

    rank: int = Field(
        16, ge=1, le=MAX_RANK, description="Rank of the update. To be published, it is at most the engine's maxRank."
    )
    alpha: int = Field(32, ge=1, le=4096, description="Scale of the update, which is multiplied by alpha / rank.")
    dropout: Decimal = Field("0.0", description="Dropout on the update's input while training.")
    rank_stabilized: bool = Field(
        False,
        description="Multiply the update by alpha / sqrt(rank) instead (rsLoRA), so that large ranks learn as fast.",
    )
    target_modules: tuple[LayerName, ...] = Field(
        (),
        max_length=64,
        description="The linear layers that get an update, by their last names, or by patterns of their whole names "
        "with * and ?. Absent: all of the language model but the output head. A mixture of experts that keeps its "
        "experts in one tensor has no linear layers there, and Mamba's out_proj is not computed as one.",
    )

    model_config = ConfigDict(json_schema_extra=rules(bound("dropout", "< 1.0", "must be less than 1, such as '0.1'")))


class Schedule(StrEnum):
    """How the learning rate goes after warm-up."""

    COSINE = "Cosine"
    LINEAR = "Linear"
    CONSTANT = "Constant"


class OverlongRows(StrEnum):
    """What happens to a row of more than maxSequenceLength tokens."""

    TRUNCATE = "Truncate"
    SPLIT = "Split"
    DROP = "Drop"


class Attention(StrEnum):
    """How attention is computed."""

    AUTO = "Auto"
    SDPA = "SDPA"
    EAGER = "Eager"


class Packing(StrEnum):
    """Whether several rows go into one sequence."""

    AUTO = "Auto"
    NEVER = "Never"


class GradientCheckpointing(StrEnum):
    """Whether activations are worked out a second time rather than kept."""

    AUTO = "Auto"
    ALWAYS = "Always"
    NEVER = "Never"


class ExportedCheckpoint(StrEnum):
    """Which checkpoint is the result."""

    LAST = "Last"
    BEST = "Best"


class Sharding(StrEnum):
    """Whether each GPU keeps only a part of the model."""

    AUTO = "Auto"
    ALWAYS = "Always"
    NEVER = "Never"


DEFAULT_WARMUP = 10
"""In steps. A training of fewer than 40 steps takes a quarter of them: the API server stores the default in every job,
so that nobody can tell whether a person has asked for it."""


class Training(Model):
    """How to learn."""

    epochs: int = Field(3, ge=1, le=1000, description="Passes over the training rows.")
    max_steps: int | None = Field(None, ge=1, le=10_000_000, description="Stop after this many steps.")
    learning_rate: Decimal = Field("2e-4", description="Peak learning rate, after warm-up; at most 10.")
    schedule: Schedule = Field(
        Schedule.COSINE,
        description="How the learning rate changes after warm-up: Cosine and Linear go to zero, Constant stays.",
    )
    warmup_steps: int = Field(
        DEFAULT_WARMUP,
        ge=0,
        le=100_000,
        description="Steps until the learning rate is at its peak; fewer than training has. The default is at most a "
        "quarter of all steps.",
    )
    weight_decay: Decimal = Field(
        "0.0",
        description="AdamW's weight decay: each step takes away this share of each weight, times the learning rate.",
    )
    adam_beta1: Decimal = Field("0.9", description="AdamW's decay of the mean of gradients.")
    adam_beta2: Decimal = Field("0.999", description="AdamW's decay of the mean of their squares.")
    adam_epsilon: Decimal = Field("1e-8", description="AdamW's smallest divisor.")
    max_gradient_norm: Decimal = Field("1.0", description="Gradients are scaled down to this norm. 0: never.")
    preference_beta: Decimal = Field(
        "0.1",
        description="DPO's beta, for rows with a chosen and a rejected answer: how much it costs to answer "
        "differently from the base model.",
    )
    max_sequence_length: int = Field(512, ge=16, le=131_072, description="Longest row in tokens.")
    overlong_rows: OverlongRows = Field(
        OverlongRows.TRUNCATE,
        description="What happens to a longer row. Truncate cuts its end off, and refuses the row if no answer is "
        "left. Split makes several rows of it, so that the loss counts each token once. Drop leaves it out. All are "
        "counted.",
    )
    batch_size: int = Field(8, ge=1, le=4096, description="Rows of one optimizer step.")
    batch_tokens: int | None = Field(
        None,
        ge=1,
        le=100_000_000,
        description="Tokens of one optimizer step, instead of batchSize rows: as many rows as fit into them, at least "
        "one.",
    )
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Rows that are in the memory of one GPU at once. batchSize must be a multiple of it. Default: as "
        "many tokens as fit and are fast.",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16",
        description="Precision in which the model computes during training. It is float32 where a machine has no "
        "instructions for bfloat16. Trained weights are kept in float32.",
    )
    attention: Attention = Field(
        Attention.AUTO, description="How attention is computed. Auto is SDPA, where the model has it; Eager is slower."
    )
    packing: Packing = Field(
        Packing.AUTO,
        description="Auto lays rows end to end if each row's loss stays what it is alone, which is tried before the "
        "first step. Otherwise, and with Never, rows of similar length are padded.",
    )
    gradient_checkpointing: GradientCheckpointing = Field(
        GradientCheckpointing.AUTO,
        description="Compute activations a second time instead of keeping them: less memory, about a third more time. "
        "Auto does so only when the longest row does not fit otherwise.",
    )
    compile: bool = Field(
        False,
        description="Compile the model's layers (torch.compile): the first steps take minutes, the others are faster. "
        "The result differs in bits from a run without it.",
    )
    sharding: Sharding = Field(
        Sharding.AUTO,
        description="Whether each of a job's GPUs keeps only a part of the weights, and with method Full also of "
        "their gradients and moments (FSDP2): less memory, more traffic. Auto does so when they would take more than "
        "two thirds of a GPU. Where trained weights are sharded, a pod that is lost without a word costs the steps "
        "since the last checkpoint. QLoRA cannot be sharded.",
    )
    seed: int = Field(42, ge=0, le=2_147_483_647, description="Seed of all randomness.")
    deterministic: bool = Field(
        True, description="The same bits each time on the same machine. False allows faster operations on a GPU."
    )
    evaluate_every_steps: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        description="Steps between two measurements of the loss on the held-out rows. It is always measured before "
        "the first step and after the last one.",
    )
    checkpoint_every_steps: int = Field(
        50, ge=1, le=100_000, description="Steps between two durable checkpoints. SIGTERM always makes one."
    )
    keep_checkpoints: int = Field(2, ge=1, le=100, description="How many of the newest checkpoints are kept.")
    exported_checkpoint: ExportedCheckpoint = Field(
        ExportedCheckpoint.LAST,
        description="What is exported. Last: the weights of the last step. Best: the best of those that were measured "
        "on the held-out rows after a step, which needs evaluateEverySteps. The best is kept beside the newest.",
    )

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!has(self.microBatchSize) || self.batchSize % self.microBatchSize == 0",
                "must be a multiple of microBatchSize; for example 8 and 4",
                at=".batchSize",
            ),
            Rule(
                "!has(self.batchTokens) || !has(self.microBatchSize)",
                "leave it out with batchTokens: as many rows go together as fit",
                at=".microBatchSize",
            ),
            Rule(
                "!has(self.exportedCheckpoint) || self.exportedCheckpoint != 'Best' || has(self.evaluateEverySteps)",
                "must be set with exportedCheckpoint Best: which is best is measured in between",
                at=".evaluateEverySteps",
            ),
            *(bound(name, "< 1.0", "must be less than 1, such as '0.9'") for name in ("adamBeta1", "adamBeta2")),
            *(
                bound(name, f"<= {most}.0", f"must be at most {most}, such as '{example}'")
                for name, most, example in (
                    ("learningRate", 10, "2e-4"),
                    ("weightDecay", 10, "0.1"),
                    ("adamEpsilon", 1, "1e-8"),
                    ("maxGradientNorm", 1_000_000, "1.0"),
                    ("preferenceBeta", 100, "0.1"),
                )
            ),
        )
    )
