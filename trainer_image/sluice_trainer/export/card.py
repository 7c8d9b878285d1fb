"""README.md of an export."""

from sluice_api.dataset import DatasetFormat
from sluice_api.finetunejob import FineTuneJobSpec
from sluice_api.stages import StageSpec, TrainResult
from sluice_api.training import Method
from sluice_trainer.prepared import PreparedManifest

_KINDS = {Method.LORA: "A LoRA adapter for", Method.QLORA: "A LoRA adapter for", Method.FULL: "A fine-tuned"}

_RENDERED = """
Rows were rendered with the chat template in `chat_template.jinja`; serve with the same one.
"""


def model_card(stage: StageSpec, prepared: PreparedManifest, trained: TrainResult) -> str:
    """Make the model card: base model, dataset, settings, and the loss on held-out rows."""
    spec = stage.spec
    whole = spec.method is Method.FULL
    found = prepared.result
    overlong = f", {found.overlong_rows} too long ({spec.training.overlong_rows})" if found.overlong_rows else ""
    unit = "pair" if prepared.row_format is DatasetFormat.PREFERENCE else "token"
    addresses = ", ".join(f"`{uri}`" for uri in spec.dataset.shown)
    return f"""---
base_model: {_base_model(spec.model.uri)}
library_name: {"transformers" if whole else "peft"}
pipeline_tag: text-generation
tags: [{"sluice" if whole else "lora, sluice"}]
---
# {stage.name}

{_KINDS[spec.method]} `{spec.model.uri}`, trained by Sluice (FineTuneJob `{stage.namespace}/{stage.name}`).

| | |
|---|---|
| dataset | {addresses}, {found.rows} rows, {found.validation_rows} held out{overlong} |
| method | {_method(spec)} |
| training | {_steps(spec, trained)}, peak learning rate {spec.training.learning_rate} |
| seed | {spec.training.seed} |
| held-out loss before | {_loss(trained.evaluation_loss_before, unit)} |
| held-out loss after | {_loss(trained.evaluation_loss_after, unit)} |
{_RENDERED if prepared.chat_template else ""}"""


def _base_model(uri: str) -> str:
    """As the hub knows it, if it is there: the hub shows an adapter with its base model."""
    return uri.removeprefix("hf://").partition("@")[0] if uri.startswith("hf://") else uri


def _method(spec: FineTuneJobSpec) -> str:
    if spec.method is Method.FULL:
        return "all weights"
    layers = ", ".join(spec.lora.target_modules) or "all linear layers"
    bits = "; the base model was in 4 bits (nf4) meanwhile" if spec.method is Method.QLORA else ""
    return f"{spec.method}: rank {spec.lora.rank}, alpha {spec.lora.alpha}, {layers}{bits}"


def _steps(spec: FineTuneJobSpec, trained: TrainResult) -> str:
    tokens = spec.training.batch_tokens
    size = f"{spec.training.batch_size} rows" if tokens is None else f"{tokens} tokens"
    best = f", of which step {trained.result_step} is this one" if trained.result_step != trained.step else ""
    return f"{trained.step} steps of {size}{best}"


def _loss(nats: float | None, unit: str) -> str:
    return "not measured" if nats is None else f"{nats:.4f} nats a {unit}"
