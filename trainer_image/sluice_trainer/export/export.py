"""The Export stage, from top to bottom: from the last checkpoint to an adapter that vLLM and PEFT can load."""

import json
from pathlib import Path

import torch
from peft import PeftModel

from sluice_api.artifacts import ADAPTER_FILES, MANIFEST, AdapterManifest, adapter_digest
from sluice_api.reports import Activity
from sluice_api.stages import ExportResult, StageSpec
from sluice_trainer import base_model, durable, failpoints, prepared
from sluice_trainer.export.card import model_card
from sluice_trainer.export.check import check_answers
from sluice_trainer.places import work, work_uri, writing
from sluice_trainer.plan import plan_digest
from sluice_trainer.report import Reporter
from sluice_trainer.train.checkpoint import Checkpoints
from sluice_trainer.train.model import load_base, trainable, with_adapter
from sluice_trainer.train.state import Snapshot


def export(stage: StageSpec, reporter: Reporter) -> ExportResult:
    """Write <work>/export/ and prove that it answers like the trained model.

    Raises:
        StageError: there is no completed training, the base model has changed, or the export is not faithful.
    """
    folder = work(stage) / "export"
    earlier = durable.read_manifest(folder, AdapterManifest)
    if earlier is not None and durable.damaged_file(folder, earlier.files) is None:
        return _result(stage, folder, earlier)
    reporter.update(activity=Activity.EXPORTING)
    trained, state = Checkpoints(stage).trained()
    data = prepared.load(work(stage) / "prepared", plan_digest(stage))
    reporter.update(step=trained.step, total_steps=trained.total_steps)
    base = base_model.locate(stage.spec.model.uri, data.manifest.base_model_revision)
    base_model.require_same(base, data.manifest.base_model_fingerprint)
    failpoints.reached("model-loads")
    model = with_adapter(load_base(base, stage.spec.training), stage.spec)
    _load_weights(model, state)

    with writing(stage), durable.new_folder(folder) as unfinished:
        modules = _write_adapter(model, unfinished)
        failpoints.reached("adapter-written")
        (unfinished / "chat_template.jinja").write_text(data.manifest.chat_template, encoding="utf-8")
        (unfinished / "README.md").write_text(model_card(stage, data.manifest, trained), encoding="utf-8")
        check_answers(unfinished, model, data)
        failpoints.reached("adapter-checked")
        manifest = AdapterManifest(
            digest=adapter_digest(unfinished),
            files=durable.digests(unfinished),
            base_model_uri=stage.spec.model.uri,
            base_model_fingerprint=data.manifest.base_model_fingerprint,
            rank=stage.spec.lora.rank,
            target_modules=modules,
            steps=trained.step,
            evaluation_loss_before=trained.evaluation_loss_before,
            evaluation_loss_after=trained.evaluation_loss_after,
            chat_template=data.manifest.chat_template,
            job=f"{stage.namespace}/{stage.name}",
            job_uid=stage.uid,
        )
        (unfinished / MANIFEST).write_text(manifest.to_json())
    durable.remove_unfinished(folder.parent)
    return _result(stage, folder, manifest)


def _load_weights(model: PeftModel, state: Snapshot) -> None:
    with torch.no_grad():
        for name, weight in trainable(model).items():
            weight.copy_(state.tensors[f"adapter.{name}"])


def _write_adapter(model: PeftModel, folder: Path) -> tuple[str, ...]:
    """Write the two files that vLLM reads, the same bytes each time; returns the names of the adapted layers."""
    # Without False, PEFT asks the hub whether the vocabulary has grown.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    config_file = folder / ADAPTER_FILES[0]
    config = json.loads(config_file.read_text())
    config["target_modules"] = sorted(config["target_modules"])  # PEFT writes a set, in any order
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return tuple(config["target_modules"])


def _result(stage: StageSpec, folder: Path, manifest: AdapterManifest) -> ExportResult:
    return ExportResult(
        uri=f"{work_uri(stage)}/export",
        digest=manifest.digest,
        rank=manifest.rank,
        size_bytes=sum((folder / name).stat().st_size for name in manifest.files),
    )
