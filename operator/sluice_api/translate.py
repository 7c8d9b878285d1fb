"""Settings of another system as a part of a FineTuneJob's spec."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from sluice_api.foreign import Fate, Foreign


@dataclass
class Translation:
    """Another system's settings as a part of a FineTuneJob's spec."""

    spec: dict[str, Any] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    """A sentence for each setting that has no meaning here."""
    refused: list[str] = field(default_factory=list)
    """A sentence for each setting that can't be had, with the nearest one that can."""

    def set(self, ours: str, value: Any) -> None:
        """Set a field, such as training.epochs or method."""
        part, _, name = ours.partition(".")
        if name:
            self.spec.setdefault(part, {})[name] = value
        else:
            self.spec[part] = value


class _NoMeaning(ValueError):
    """A value that has no counterpart, with what to write instead."""


def translate(settings: Mapping[str, Any], table: Mapping[str, Foreign], gpus: int = 1) -> Translation:
    """Settings of another system as ours.

    Args:
        settings: by the names of `table`.
        gpus: of all pods: a batch is of one GPU elsewhere, and of the whole step here.
    """
    found = Translation()
    for name, value in settings.items():
        known = table.get(name)
        if known is None:
            near = get_close_matches(name, table, n=1)
            found.refused.append(f"{name}: no such setting is known.{f' Did you mean {near[0]}?' if near else ''}")
        elif known.fate is Fate.IGNORED:
            found.ignored.append(f"{name}: ignored. {known.note}")
        elif known.fate is Fate.REFUSED:
            if value not in known.harmless:
                nearest = f" The nearest is {known.ours}." if known.ours else ""
                found.refused.append(f"{name}: {value!r} can't be had. {known.note}{nearest}")
        elif name not in _TOGETHER:
            try:
                converted = _CONVERTED.get(name, _as_it_is)(value)
            except _NoMeaning as error:
                found.refused.append(f"{name}: {value!r} can't be had. {error}")
                continue
            if converted is not None:
                found.set(known.ours, converted)
    _set_batch(found, settings, table, gpus)
    _set_evaluation(found, settings)
    return found


_TOGETHER = ("per_device_train_batch_size", "batch_size", "gradient_accumulation_steps")
"""Settings that mean something only with another one."""


def _set_evaluation(found: Translation, settings: Mapping[str, Any]) -> None:
    learning = found.spec.get("training", {})
    if settings.get("eval_strategy") == "no":
        learning.pop("evaluateEverySteps", None)
    if learning.get("exportedCheckpoint") == "Best" and "evaluateEverySteps" not in learning:
        del learning["exportedCheckpoint"]
        found.refused.append("load_best_model_at_end: True can't be had without eval_steps: what is best is measured.")


_DEFAULT_ROWS = {"per_device_train_batch_size": 8, "batch_size": 4}
"""What they take when only the steps are given."""


def _set_batch(found: Translation, settings: Mapping[str, Any], table: Mapping[str, Foreign], gpus: int) -> None:
    name = next((name for name in _DEFAULT_ROWS if name in table), "")
    rows = settings.get(name)
    steps = settings.get("gradient_accumulation_steps")
    if rows is None and steps is None:
        return
    rows, steps = int(rows or _DEFAULT_ROWS[name]), int(steps or 1)
    found.set("training.microBatchSize", rows)
    found.set("training.batchSize", rows * steps * gpus)


def _as_it_is(value: Any) -> Any:
    """Whole numbers and words as they are, other numbers as strings: a spec has no floats."""
    return str(value) if isinstance(value, float) else value


def _whole(value: Any) -> int | None:
    if value is None:
        return None
    if float(value) != int(value):
        raise _NoMeaning("Write a whole number.")
    return int(value) if int(value) > 0 else None


def _schedule(value: Any) -> str:
    known = {"cosine": "Cosine", "linear": "Linear", "constant": "Constant", "constant_with_warmup": "Constant"}
    if str(value) not in known:
        raise _NoMeaning(f"Schedules are {', '.join(known)}.")
    return known[str(value)]


def _evaluates(value: Any) -> None:
    """How often is in eval_steps."""
    if value not in (None, "no", "steps"):
        raise _NoMeaning("Write steps, and how many in eval_steps.")


def _targets(value: Any) -> list[str] | None:
    if value is None or value == "all-linear":
        return None
    if isinstance(value, str):
        raise _NoMeaning("Write a list of names or patterns with * and ?.")
    return list(value)


def _method(bits: Any) -> str | None:
    if bits not in (None, 0, 4):
        raise _NoMeaning("Write 4.")
    return "QLoRA" if bits else None


def _best(value: Any) -> str:
    return "Best" if value else "Last"


def _recomputed(value: Any) -> str:
    return "Always" if value else "Auto"


def _precision(value: Any) -> str | None:
    return "bfloat16" if value else None


_CONVERTED: Mapping[str, Callable[[Any], Any]] = {
    "num_train_epochs": _whole,
    "max_steps": _whole,
    "warmup_steps": lambda value: _whole(value) or 0,
    "save_steps": _whole,
    "eval_steps": _whole,
    "eval_strategy": _evaluates,
    "learning_rate": str,
    "weight_decay": str,
    "adam_beta1": str,
    "adam_beta2": str,
    "adam_epsilon": str,
    "max_grad_norm": str,
    "lora_dropout": str,
    "lr_scheduler_type": _schedule,
    "target_modules": _targets,
    "bf16": _precision,
    "load_best_model_at_end": _best,
    "gradient_checkpointing": _recomputed,
    "quantization_bits": _method,
    "model_id": lambda value: f"hf://{value}",
}
