"""What others call the settings of a training, and what becomes of theirs: for people who come from elsewhere.

transformers' TrainingArguments and peft's LoraConfig, which ServerlessLLM passes on as `training_config` and
`lora_config`, and SAGE's parameters of a fine-tuning engine. docs/training.md shows the tables, translate.py applies
them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Fate(StrEnum):
    """What becomes of a setting."""

    MAPPED = "mapped"
    IGNORED = "ignored"
    REFUSED = "refused"


@dataclass(frozen=True)
class Foreign:
    """One setting of another system."""

    fate: Fate
    ours: str = ""
    """The field that it sets; of a refused one the nearest, if there is any."""
    note: str = ""
    """How values are read; why it has no meaning here, or what to do instead."""
    harmless: tuple[Any, ...] = ()
    """Values of a refused setting that ask for nothing: they are passed over."""


def _mapped(ours: str, note: str = "") -> Foreign:
    return Foreign(Fate.MAPPED, ours, note)


def _ignored(note: str) -> Foreign:
    return Foreign(Fate.IGNORED, note=note)


def _refused(note: str, *harmless: Any, ours: str = "") -> Foreign:
    return Foreign(Fate.REFUSED, ours, note, (None, False, *harmless))


_PLACES = "Where files go follows from the job: output.uri."
_WATCHING = "Reports, metrics and logs are the operator's: status.progress, Prometheus, JSON lines."
_LOADING = "Rows are tokenised before training, and read from memory."
_SAME_RESULT = "It changes no result here."
_GROUP = "How processes work together follows from resources.nodes and resources.gpus."
_NOT_SERVED = "vLLM can't load such an adapter."

TRAINING_ARGUMENTS: Mapping[str, Foreign] = {
    "num_train_epochs": _mapped("training.epochs", "whole passes"),
    "max_steps": _mapped(
        "training.maxSteps", "-1 is absent; training also ends after training.epochs, which theirs passes over then"
    ),
    "learning_rate": _mapped("training.learningRate"),
    "lr_scheduler_type": _mapped(
        "training.schedule", "cosine, linear, constant, constant_with_warmup; others are refused"
    ),
    "lr_scheduler_kwargs": _refused("Schedules have no settings of their own.", {}, ours="training.schedule"),
    "warmup_steps": _mapped("training.warmupSteps", "a whole number of steps; a share is refused"),
    "warmup_ratio": _refused("Write a number of steps.", 0, 0.0, ours="training.warmupSteps"),
    "weight_decay": _mapped(
        "training.weightDecay", "with method Full also of norms and biases, which theirs leaves out"
    ),
    "adam_beta1": _mapped("training.adamBeta1"),
    "adam_beta2": _mapped("training.adamBeta2"),
    "adam_epsilon": _mapped("training.adamEpsilon"),
    "max_grad_norm": _mapped("training.maxGradientNorm"),
    "per_device_train_batch_size": _mapped(
        "training.microBatchSize", "times gradient_accumulation_steps and all GPUs it is training.batchSize"
    ),
    "gradient_accumulation_steps": _mapped("training.batchSize", "see per_device_train_batch_size"),
    "seed": _mapped("training.seed"),
    "data_seed": _refused("One seed is for everything.", ours="training.seed"),
    "bf16": _mapped("training.dtype", "true is bfloat16"),
    "fp16": _refused("Small gradients vanish in float16 without a scaler. Use bf16.", ours="training.dtype"),
    "tf32": _refused("Products are as precise as their dtype.", ours="training.dtype"),
    "full_determinism": _mapped("training.deterministic"),
    "eval_steps": _mapped("training.evaluateEverySteps"),
    "eval_strategy": _mapped(
        "training.evaluateEverySteps", "no; steps, with eval_steps; epoch is refused: write the steps of one"
    ),
    "save_steps": _mapped("training.checkpointEverySteps", "a whole number of steps"),
    "optim": _refused(
        "AdamW is the optimizer.", "adamw_torch", "adamw_torch_fused", "adamw_hf", ours="training.adamBeta1"
    ),
    "optim_args": _refused("AdamW has fields of its own.", "", ours="training.adamBeta1"),
    "optim_target_modules": _refused("That is for GaLore.", ours="lora.targetModules"),
    "label_smoothing_factor": _refused("The loss is plain cross entropy.", 0, 0.0),
    "neftune_noise_alpha": _refused("No noise is added to embeddings.", 0, 0.0, ours="lora.dropout"),
    "deepspeed": _refused("DeepSpeed is not used.", "", ours="training.sharding"),
    "fsdp": _refused("The model is sharded when it must be.", "", [], ours="training.sharding"),
    "fsdp_config": _refused("The model is sharded when it must be.", {}, ours="training.sharding"),
    "parallelism_config": _refused("The model is sharded when it must be.", {}, ours="training.sharding"),
    "torch_compile": _mapped("training.compile"),
    "torch_compile_backend": _refused("It is inductor.", "inductor", ours="training.compile"),
    "torch_compile_mode": _refused("It is the default one.", "default", ours="training.compile"),
    "gradient_checkpointing": _mapped("training.gradientCheckpointing", "true is Always, false Auto"),
    "gradient_checkpointing_kwargs": _ignored("Never reentrant."),
    "auto_find_batch_size": _ignored("What fits into memory changes no batch: micro-batches are made smaller."),
    "use_liger_kernel": _ignored("The loss is computed a piece of the positions at a time, where the model allows."),
    "liger_kernel_config": _ignored("The loss is computed a piece of the positions at a time, where the model allows."),
    "use_cpu": _ignored("Jobs of 0 GPUs do not exist; a pod without a GPU trains on its CPU."),
    "average_tokens_across_devices": _ignored("Always so."),
    "train_sampling_strategy": _refused("Each pass has an order of its own, from the seed.", "random"),
    "group_by_length": _ignored("Rows are packed."),
    "length_column_name": _ignored("Rows are packed."),
    "load_best_model_at_end": _mapped("training.exportedCheckpoint", "true is Best"),
    "metric_for_best_model": _refused("The loss is what is measured.", "loss", "eval_loss"),
    "greater_is_better": _refused("The loss is what is measured."),
    "ignore_data_skip": _refused("A resumed training sees exactly the rows that are left."),
    "dataloader_drop_last": _refused("Every row is trained on in each pass."),
    "prediction_loss_only": _ignored("The loss is what is measured."),
    "include_for_metrics": _refused("The loss is what is measured.", []),
    "push_to_hub": _refused("The result goes to a volume.", ours="output.uri"),
    **dict.fromkeys(
        ("hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"),
        _ignored("The result goes to a volume."),
    ),
    **dict.fromkeys(("output_dir", "run_name", "project"), _ignored(_PLACES)),
    **dict.fromkeys(
        (
            "logging_strategy",
            "logging_steps",
            "logging_first_step",
            "log_on_each_node",
            "logging_nan_inf_filter",
            "log_level",
            "log_level_replica",
            "disable_tqdm",
            "report_to",
            "include_num_input_tokens_seen",
            "trackio_space_id",
            "trackio_bucket_id",
            "trackio_static_space_id",
            "skip_memory_metrics",
            "debug",
        ),
        _ignored(_WATCHING),
    ),
    **dict.fromkeys(
        (
            "save_strategy",
            "save_total_limit",
            "save_only_model",
            "save_on_each_node",
            "enable_jit_checkpoint",
            "resume_from_checkpoint",
            "restore_callback_states_from_checkpoint",
        ),
        _ignored("Checkpoints are always made, also on SIGTERM, and always resumed from."),
    ),
    **dict.fromkeys(
        (
            "dataloader_num_workers",
            "dataloader_pin_memory",
            "dataloader_persistent_workers",
            "dataloader_prefetch_factor",
            "dataloader_multiprocessing_context",
            "dataloader_in_order",
            "remove_unused_columns",
            "label_names",
        ),
        _ignored(_LOADING),
    ),
    **dict.fromkeys(
        (
            "eval_delay",
            "eval_on_start",
            "per_device_eval_batch_size",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "eval_accumulation_steps",
            "batch_eval_metrics",
            "bf16_full_eval",
            "fp16_full_eval",
            "do_train",
            "do_eval",
            "do_predict",
            "use_cache",
            "torch_empty_cache_steps",
        ),
        _ignored(_SAME_RESULT),
    ),
    **dict.fromkeys(
        (
            "accelerator_config",
            "ddp_find_unused_parameters",
            "ddp_bucket_cap_mb",
            "ddp_broadcast_buffers",
            "ddp_static_graph",
            "ddp_backend",
            "ddp_timeout",
            "local_rank",
        ),
        _ignored(_GROUP),
    ),
}

LORA_CONFIG: Mapping[str, Foreign] = {
    "r": _mapped("lora.rank", "1 to 512; at most the engine's maxRank"),
    "lora_alpha": _mapped("lora.alpha"),
    "lora_dropout": _mapped("lora.dropout"),
    "use_rslora": _mapped("lora.rankStabilized"),
    "target_modules": _mapped("lora.targetModules", "all-linear is absent; a regular expression is refused"),
    "exclude_modules": _refused("Name those that get an update.", [], ours="lora.targetModules"),
    "layers_to_transform": _refused(
        "Name them by a pattern, such as 'model.layers.1?.*'.", [], ours="lora.targetModules"
    ),
    "layers_pattern": _refused("Name them by a pattern, such as 'model.layers.1?.*'.", "", ours="lora.targetModules"),
    "bias": _refused(_NOT_SERVED, "none"),
    "lora_bias": _refused(_NOT_SERVED),
    "use_dora": _refused(_NOT_SERVED, ours="lora.rankStabilized"),
    "modules_to_save": _refused(_NOT_SERVED, [], ours="lora.targetModules"),
    "trainable_token_indices": _refused(_NOT_SERVED, []),
    "target_parameters": _refused(_NOT_SERVED, [], ours="lora.targetModules"),
    "rank_pattern": _refused("vLLM takes one rank and one alpha for all layers.", {}, ours="lora.rank"),
    "alpha_pattern": _refused("vLLM takes one rank and one alpha for all layers.", {}, ours="lora.alpha"),
    "init_lora_weights": _refused("Other beginnings change the base model, which vLLM does not.", True),
    "layer_replication": _refused(_NOT_SERVED, []),
    "ensure_weight_tying": _refused(_NOT_SERVED),
    **dict.fromkeys(
        (
            "loftq_config",
            "eva_config",
            "corda_config",
            "lora_ga_config",
            "velora_config",
            "use_qalora",
            "alora_invocation_tokens",
            "arrow_config",
            "use_bdlora",
            "monteclora_config",
            "kasa_config",
            "megatron_config",
        ),
        _refused(_NOT_SERVED, {}, []),
    ),
    **dict.fromkeys(
        (
            "task_type",
            "peft_type",
            "auto_mapping",
            "peft_version",
            "base_model_name_or_path",
            "revision",
            "inference_mode",
            "fan_in_fan_out",
            "megatron_core",
            "qalora_group_size",
            "runtime_config",
        ),
        _ignored("It follows from the model, or from a setting that is refused."),
    ),
}

SAGE: Mapping[str, Foreign] = {
    "model_id": _mapped("model.uri", "as hf://<model_id>"),
    "dataset_path": _mapped("dataset.uri", "an address: pvc://, https:// or hf://"),
    "output_dir": _mapped("output.uri", "an address: pvc://claim/path"),
    "lora_rank": _mapped("lora.rank"),
    "lora_alpha": _mapped("lora.alpha"),
    "learning_rate": _mapped("training.learningRate"),
    "epochs": _mapped("training.epochs"),
    "batch_size": _mapped(
        "training.microBatchSize", "times gradient_accumulation_steps and all GPUs it is training.batchSize"
    ),
    "gradient_accumulation_steps": _mapped("training.batchSize", "see batch_size"),
    "max_seq_length": _mapped("training.maxSequenceLength"),
    "use_flash_attention": _ignored("What is fastest on the machine is used: training.attention Auto."),
    "quantization_bits": _mapped("method", "4 is QLoRA; 8 is refused"),
    "auto_download": _ignored("A model of hf:// is always fetched."),
}
