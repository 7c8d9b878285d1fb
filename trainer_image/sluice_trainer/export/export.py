"""The Export stage, from top to bottom: from a checkpoint to an adapter or a model that vLLM and others load."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from sluice_api.artifacts import CHAT_TEMPLATE, MANIFEST, AdapterManifest, ModelManifest, adapter_digest, model_digest
from sluice_api.reports import Activity
from sluice_api.stages import ExportResult, StageSpec, TrainResult
from sluice_api.training import Method
from sluice_trainer import base_model, durable, failpoints, pickled, prepared
from sluice_trainer.base_model import BaseModel
from sluice_trainer.export.adapter import write_adapter
from sluice_trainer.export.card import model_card
from sluice_trainer.export.check import logits_of_one_row, require_same_logits
from sluice_trainer.export.whole_model import write_model
from sluice_trainer.prepared import Prepared
from sluice_trainer.report import Reporter
from sluice_trainer.train.checkpoints.checkpoint import Checkpoints
from sluice_trainer.train.checkpoints.state import WEIGHT, Snapshot
from sluice_trainer.train.weights.model import DTYPES, Model, load, trainable
from sluice_trainer.work import work_of
from sluice_trainer.work_folder import WorkFolder

Manifest = AdapterManifest | ModelManifest


def export(stage: StageSpec, reporter: Reporter) -> ExportResult:
    """Write <work>/export/, and check that it answers like the trained model.

    Raises:
        StageError: there is no completed training, the base model has changed, or the export is not faithful.
    """
    work = work_of(stage)
    folder = work.folder / "export"
    kind: type[Manifest] = ModelManifest if stage.spec.method is Method.FULL else AdapterManifest
    rows = work.fetch(work.folder / "prepared")
    plan = prepared.manifest_of(rows, stage).plan
    earlier = durable.read_manifest(work.fetch(folder), kind)
    if earlier is not None and earlier.plan == plan and durable.damaged_file(folder, earlier.files) is None:
        return _result(work, folder, earlier, _size(folder))
    reporter.update(activity=Activity.EXPORTING)
    trained, state = Checkpoints(stage, plan, work).trained()
    data = prepared.load(rows, stage)
    reporter.update(step=trained.step, total_steps=trained.total_steps)
    base = pickled.locate(stage, data.manifest.base_model_revision)
    base_model.require_same(base, data.manifest.base_model_fingerprint)
    failpoints.reached("model-loads")
    model = load(base, stage.spec, torch.device("cpu"))
    _load_weights(model, state)

    written = dict(model.named_parameters()) if stage.spec.method is Method.FULL else trainable(model)
    size = sum(weight.nbytes for weight in written.values())
    with work.writing(size), work.new_folder(folder) as unfinished:
        if template := data.manifest.chat_template:  # an empty one would render every conversation as nothing
            (unfinished / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
        (unfinished / "README.md").write_text(model_card(stage, data.manifest, trained), encoding="utf-8")
        if isinstance(model, PeftModel):
            manifest = _adapter(model, stage, data, trained, unfinished)
        else:
            manifest = _whole_model(model, base, stage, data, trained, unfinished)
        failpoints.reached("adapter-checked")
        (unfinished / MANIFEST).write_text(manifest.to_json())
        size = _size(unfinished)
    work.remove_unfinished(folder)
    return _result(work, folder, manifest, size)


def _adapter(model: PeftModel, stage: StageSpec, data: Prepared, trained: TrainResult, folder: Path) -> Manifest:
    modules = write_adapter(model, folder)
    failpoints.reached("adapter-written")
    expected = logits_of_one_row(model, data)
    require_same_logits(expected, logits_of_one_row(PeftModel.from_pretrained(model.unload(), folder), data))
    return AdapterManifest(
        digest=adapter_digest(folder),
        rank=stage.spec.lora.rank,
        target_modules=modules,
        **_common(stage, data, trained, folder),
    )


def _whole_model(
    model: PreTrainedModel, base: BaseModel, stage: StageSpec, data: Prepared, trained: TrainResult, folder: Path
) -> Manifest:
    write_model(model, DTYPES[stage.spec.training.dtype], base, folder)
    failpoints.reached("adapter-written")
    expected = logits_of_one_row(model, data)
    same_attention = model.config._attn_implementation  # others round otherwise
    exported = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, attn_implementation=same_attention)
    require_same_logits(expected, logits_of_one_row(exported, data))
    return ModelManifest(digest=model_digest(folder), **_common(stage, data, trained, folder))


def _common(stage: StageSpec, data: Prepared, trained: TrainResult, folder: Path) -> dict[str, Any]:
    """Fields that the manifests of adapters and models share. All other files must be written already."""
    return {
        "files": durable.digests(folder),
        "base_model_uri": stage.spec.model.uri,
        "base_model_fingerprint": data.manifest.base_model_fingerprint,
        "plan": data.manifest.plan,
        "steps": trained.step,
        "evaluation_loss_before": trained.evaluation_loss_before,
        "evaluation_loss_after": trained.evaluation_loss_after,
        "chat_template": data.manifest.chat_template,
        "job": f"{stage.namespace}/{stage.name}",
        "job_uid": stage.uid,
    }


def _load_weights(model: Model, state: Snapshot) -> None:
    with torch.no_grad():
        for name, weight in trainable(model).items():
            weight.copy_(state.tensors[f"{WEIGHT}{name}"])


def _size(folder: Path) -> int:
    """Bytes of all files but the manifest."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.name != MANIFEST)


def _result(work: WorkFolder, folder: Path, manifest: Manifest, size: int) -> ExportResult:
    return ExportResult(
        uri=work.address(folder),
        digest=manifest.digest,
        rank=manifest.rank if isinstance(manifest, AdapterManifest) else None,
        size_bytes=size,
    )
