"""QLoRA and Full: they learn, go on after an interruption to the same bits, and export what others load."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from sluice_api.artifacts import ModelManifest, model_digest, model_fingerprint
from sluice_api.reasons import Reason
from sluice_trainer import base_model
from sluice_trainer.errors import StageError
from sluice_trainer.export.whole_model import write_model
from sluice_trainer.train.batches import MicroBatch
from sluice_trainer.train.loss import TokenLoss
from sluice_trainer.train.trials.fused_loss import verify_fused_loss
from sluice_trainer.train.weights.model import autocast_dtype, load, trainable
from tests.unit.trainer.jobs import Job

TRAINING = (("epochs", 4), ("checkpointEverySteps", 15), ("learningRate", "2e-3"))
"""20 steps, one checkpoint between: of several, a slow disk has some left out."""
NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


def with_method(job: Job, method: str, *training: tuple[str, object], name: str = "job") -> Job:
    lora = {"rank": 8, "alpha": 64, "dropout": "0.1"}
    return replace(job, name=name, spec=(("method", method), ("lora", lora)), training=(*TRAINING, *training))


def four_bits_of(layer: Linear4bit) -> QuantState:
    state = vars(layer.weight)["quant_state"]
    assert isinstance(state, QuantState)
    return state


def export_of(job: Job) -> Path:
    return job.work / "export"


@pytest.mark.parametrize("method", ["QLoRA", "Full"])
def test_method_trains_and_resumes_to_the_same_bits(job: Job, method: str) -> None:
    undisturbed = with_method(job, method)
    undisturbed.prepare()
    result = undisturbed.train()
    assert result.evaluation_loss_after < result.evaluation_loss_before - 0.3  # type: ignore[operator]
    undisturbed.export()

    again = with_method(job, method, name="again")
    again.prepare()
    again.train()
    checkpoints = again.work / "checkpoints"
    (checkpoints / "step-20" / "state.safetensors").unlink()
    (checkpoints / "manifest.json").unlink()
    resumed = again.train()
    assert (resumed.resumed_from, resumed.evaluation_loss_after) == (15, result.evaluation_loss_after)
    again.export()
    weights = next(export_of(undisturbed).glob("*model.safetensors")).name
    assert (export_of(again) / weights).read_bytes() == (export_of(undisturbed) / weights).read_bytes()


def test_qlora_has_a_four_bit_model_and_a_float32_adapter(job: Job) -> None:
    job = with_method(job, "QLoRA")
    base = base_model.locate("pvc://models/tiny")
    model = load(base, job.stage("Train").spec, torch.device("cpu"))
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj.base_layer")
    assert isinstance(layer, Linear4bit)
    assert (layer.weight.dtype, four_bits_of(layer).quant_type) == (torch.uint8, "nf4")
    assert four_bits_of(layer).nested
    assert {weight.dtype for weight in trainable(model).values()} == {torch.float32}
    assert {name.rpartition(".lora_")[2][:2] for name in trainable(model)} == {"A.", "B."}


def test_qlora_gradients_are_those_of_dequantized_weights(
    job: Job,
) -> None:
    job = with_method(job, "QLoRA")
    job.prepare()
    batch = MicroBatch.of([job.prepared().training[0]], torch.device("cpu"))
    model = load(base_model.locate("pvc://models/tiny"), job.stage("Train").spec, torch.device("cpu"))
    with torch.inference_mode():
        TokenLoss(model.eval()).summed(batch)
    TokenLoss(model).summed(batch).backward()
    found = {name: weight.grad for name, weight in trainable(model).items()}

    plain = load(
        base_model.locate("pvc://models/tiny"), with_method(job, "LoRA").stage("Train").spec, torch.device("cpu")
    ).eval()
    for name, layer in model.named_modules():
        if isinstance(layer, Linear4bit):
            dequantized = dequantize_4bit(layer.weight.data, four_bits_of(layer))
            plain.get_submodule(name).weight.data = dequantized
    plain.load_state_dict(trainable(model), strict=False)
    TokenLoss(plain).summed(batch).backward()
    for name, weight in trainable(plain).items():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-5)


def test_qlora_export_has_the_loss_of_the_training(job: Job) -> None:
    job = with_method(job, "QLoRA")
    job.prepare()
    result = job.train()
    job.export()
    base = AutoModelForCausalLM.from_pretrained(
        job.volumes / "models" / "tiny", dtype=torch.float32, quantization_config=NF4, device_map="cpu"
    )
    model = PeftModel.from_pretrained(base, export_of(job)).eval()
    assert held_out_loss(job, model) == pytest.approx(result.evaluation_loss_after, rel=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_full_export_loads_and_has_the_loss_of_the_training(job: Job, dtype: str) -> None:
    job = with_method(job, "Full", ("dtype", dtype))
    job.prepare()
    result = job.train()
    digest = job.export()
    folder = export_of(job)
    manifest = ModelManifest.model_validate_json((folder / "manifest.json").read_bytes())
    assert (manifest.digest, manifest.steps) == (digest, 20)
    assert model_digest(folder) == digest
    assert model_fingerprint(folder) != manifest.base_model_fingerprint

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert str(model.dtype) == f"torch.{dtype}"
    tolerance = {"float32": 1e-5, "bfloat16": 1e-2}[dtype]
    assert held_out_loss(job, model) == pytest.approx(result.evaluation_loss_after, rel=tolerance)
    before = AutoModelForCausalLM.from_pretrained(job.volumes / "models" / "tiny", dtype=model.dtype)
    was = dict(before.named_parameters())
    assert all(not torch.equal(weight, was[name]) for name, weight in model.named_parameters())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Ahoy"}], tokenize=False).startswith(
        "<|im_start|>"
    )
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype


def test_full_export_keeps_the_tokenizer_and_no_other_weights(job: Job) -> None:
    """Eager attention rounds otherwise than sdpa; and a setting that transformers reads, it may refuse to write."""
    base = job.volumes / "models" / "tiny"
    (base / "generation_config.json").unlink(missing_ok=True)
    (base / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.6, "eos_token_id": 1}')
    (base / "tf_model.h5").write_text("weights of another kind")
    job = with_method(job, "Full", ("dtype", "bfloat16"), ("attention", "Eager"), ("maxSteps", 2))
    job.prepare()
    job.train()
    job.export()
    assert '"temperature": 0.6' in (export_of(job) / "generation_config.json").read_text()
    assert not (export_of(job) / "tf_model.h5").exists()
    assert (export_of(job) / "chat_template.jinja").read_text().startswith("{% for message")


def test_full_export_copies_no_file_that_became_a_link(job: Job) -> None:
    """The base model's folder was checked when it was found; its files are copied after a whole training."""
    model = AutoModelForCausalLM.from_pretrained(job.volumes / "models" / "tiny")
    base = base_model.locate("pvc://models/tiny")
    (base.folder / "vocab.txt").symlink_to(job.volumes / "datasets" / "rows.jsonl")
    export = job.volumes / "adapters" / "export"
    with pytest.raises(StageError, match=r"vocab\.txt is a link that leads out of the folder"):
        write_model(model, torch.float32, base, export)
    assert not (export / "vocab.txt").exists()


def test_full_in_bfloat16_keeps_float32_weights(job: Job) -> None:
    job = with_method(job, "Full", ("dtype", "bfloat16"))
    job.prepare()
    spec = job.stage("Train").spec
    model = load(base_model.locate("pvc://models/tiny"), spec, torch.device("cpu"))
    batch = MicroBatch.of([job.prepared().training[0]], torch.device("cpu"))
    token_loss = TokenLoss(model, autocast_dtype(spec))
    full = token_loss.summed(batch)
    verified = verify_fused_loss(token_loss, batch.input_ids, batch.loss_mask)
    assert verified.fused_head is not None
    fused = verified.summed(batch)
    torch.testing.assert_close(fused, full, rtol=1e-2, atol=1e-2)
    fused.backward()
    gradients = {name: weight.grad for name, weight in trainable(model).items()}
    assert all(grad is not None and grad.dtype == torch.float32 for grad in gradients.values())
    exact = load(
        base_model.locate("pvc://models/tiny"), with_method(job, "Full").stage("Train").spec, torch.device("cpu")
    )
    assert TokenLoss(exact).summed(batch).item() != full.item()


@pytest.mark.parametrize("method", ["LoRA", "QLoRA", "Full"])
def test_dtype_is_float32_on_a_machine_without_bfloat16(
    method: str, job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def losses(name: str, dtype: str, *, here: bool) -> list[float]:
        """On a machine that has bfloat16, or has it not, whatever this one has: torch computes in it on any."""
        has = {"avx512_bf16": here, "amx_bf16": False, "avx2": True, "cpu_name": "some"}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
        one = replace(with_method(job, method, ("dtype", dtype), ("maxSteps", 2)), name=name)
        one.prepare()
        one.train()
        printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert any(event["event"] == "no bfloat16 here" for event in printed) is (name == "without")
        return [event["loss"] for event in printed if event["event"] == "step"]

    exact, rounded = losses("exact", "float32", here=False), losses("rounded", "bfloat16", here=True)
    assert losses("without", "bfloat16", here=False) == exact != rounded


def held_out_loss(job: Job, model: torch.nn.Module) -> float:
    rows = job.prepared().validation
    losses = [TokenLoss(model).summed(MicroBatch.of([rows[i]], torch.device("cpu"))).item() for i in range(len(rows))]
    return sum(losses) / sum(int(rows[i].loss_mask.sum()) for i in range(len(rows)))


def test_resources_memory_must_hold_a_checkpoint(job: Job) -> None:
    """The tiny model's takes between one MiB and two."""
    small = replace(with_method(job, "Full"), spec=(("method", "Full"), ("resources", {"memory": "1Mi"})))
    with pytest.raises(StageError) as raised:
        small.prepare()
    assert raised.value.reason == Reason.OUT_OF_MEMORY
    assert raised.value.message.startswith("resources.memory 1Mi does not hold a checkpoint of all ")
    replace(small, spec=(("method", "LoRA"), ("resources", {"memory": "1Mi"}), ("lora", {"rank": 8}))).prepare()
    replace(small, name="enough", spec=(("method", "Full"), ("resources", {"memory": "2Mi"}))).prepare()
