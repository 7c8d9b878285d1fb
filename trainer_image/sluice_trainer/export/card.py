"""README.md of an exported adapter."""

from sluice_api.stages import StageSpec, TrainResult
from sluice_trainer.prepared import PreparedManifest


def model_card(stage: StageSpec, prepared: PreparedManifest, trained: TrainResult) -> str:
    """A model card: what it was made from, how, and how good it is on rows it has not seen."""
    spec = stage.spec
    return f"""---
base_model: {spec.model.uri}
library_name: peft
tags: [lora, sluice]
---
# {stage.name}

A LoRA adapter for `{spec.model.uri}`, trained by Sluice (FineTuneJob `{stage.namespace}/{stage.name}`).

| | |
|---|---|
| dataset | `{spec.dataset.uri}`, {prepared.result.rows} rows, {prepared.result.validation_rows} held out |
| adapter | rank {spec.lora.rank}, alpha {spec.lora.alpha}, all linear layers |
| training | {trained.step} steps of {spec.training.batch_size} rows, peak learning rate {spec.training.learning_rate} |
| seed | {spec.training.seed} |
| held-out loss before | {_loss(trained.evaluation_loss_before)} |
| held-out loss after | {_loss(trained.evaluation_loss_after)} |

Rows were rendered with the chat template in `chat_template.jinja`; serve with the same one.
"""


def _loss(nats: float | None) -> str:
    return "not measured" if nats is None else f"{nats:.4f} nats a token"
