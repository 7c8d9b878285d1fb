"""A model, its tokenizer, its template or an adapter that can't be trained: said by Prepare, on a CPU."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sluice_api.reasons import Reason
from sluice_trainer.errors import StageError
from tests.object_store import ObjectStore, write_secret
from tests.unit.trainer.conftest import CHATML
from tests.unit.trainer.jobs import Job, write_rows

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(job: Job) -> Path:
    """The model's folder, with files of its own: those of the job are links."""
    folder = job.volumes / "models" / "tiny"
    for file in folder.iterdir():
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
    return folder


def refused(job: Job) -> str:
    with pytest.raises(StageError) as raised:
        job.prepare()
    assert raised.value.reason == Reason.MODEL_INVALID
    assert not (job.work / "prepared").exists()
    return raised.value.message


def configure(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def ends_with(folder: Path, token: str, generation: dict[str, Any] | None, config: int | None) -> None:
    """Give the model this eos_token, and these eos_token_id in its two other files."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = token
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    configure(folder, eos_token_id=config)


START, END = 0, 1
"""Ids of <|im_start|> and <|im_end|>, with which the template ends a turn."""


@pytest.mark.parametrize(
    ("eos_token", "generation", "config"),
    [
        ("<|im_end|>", None, None),
        ("<|im_end|>", {"eos_token_id": START}, START),
        ("<|im_start|>", {"eos_token_id": END}, START),
        ("<|im_start|>", {"eos_token_id": [START, END]}, START),
        ("<|im_start|>", None, END),
    ],
)
def test_stop_tokens_of_serving(
    job: Job, folder: Path, eos_token: str, generation: dict[str, Any], config: int
) -> None:
    ends_with(folder, eos_token, generation, config)
    assert job.prepare().rows == 36


@pytest.mark.parametrize(
    ("generation", "config"),
    [
        ({"eos_token_id": START}, START),
        ({"eos_token_id": [START]}, END),  # vLLM asks config.json only when there is no generation_config.json
        ({"do_sample": True}, END),
        (None, START),
        (None, None),
    ],
)
def test_turn_end_at_which_serving_does_not_stop_is_refused(
    job: Job, folder: Path, generation: dict[str, Any], config: int
) -> None:
    ends_with(folder, "<|im_start|>", generation, config)
    assert refused(job) == (
        "model.uri pvc://models/tiny: its chat template ends the assistant's turn with <|im_end|>, but serving stops "
        "at <|im_start|>: an adapter would learn never to stop. Add 1 to eos_token_id in generation_config.json, or "
        "use the model's instruction-tuned version."
    )


@pytest.mark.parametrize("twice", [False, True])
def test_bos_is_once_in_a_conversation(job: Job, folder: Path, twice: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = "<|im_start|>"  # with which ChatML begins
    tokenizer.chat_template = "{{ bos_token }}" * twice + CHATML
    tokenizer.save_pretrained(folder)
    if twice:
        assert refused(job) == (
            "model.uri pvc://models/tiny: its chat template begins a conversation with <|im_start|> twice, where the "
            "model knows one. Remove the other from the template."
        )
    else:
        assert job.prepare().rows == 36


def test_bos_is_once_in_a_text(job: Job, folder: Path) -> None:
    """Though its tokenizer puts a BOS before it, and it has one of its own."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = "<|im_start|>"
    begin = ("<|im_start|>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[begin])
    tokenizer.save_pretrained(folder)
    texts = [{"text": "abc"}, {"text": "<|im_start|>abc"}]
    write_rows(job.volumes / job.dataset, texts)
    job = replace(job, spec=(("dataset", {"uri": f"pvc://{job.dataset}", "validationSplit": "0%"}),))
    job.prepare()
    first, second = (job.prepared().training[index] for index in range(2))
    assert tokenizer.decode(first.input_ids) == "<|im_start|>abc<|im_end|>"
    assert first.loss_mask.tolist() == [0, 1, 1, 1, 1]
    assert second.input_ids.tolist() == first.input_ids.tolist()


def add_tokens(folder: Path, count: int, train: Callable[[torch.Tensor], object] | None) -> None:
    """Add tokens, of which the template uses all but the first.

    Args:
        folder: The model's.
        count: How many.
        train: What becomes of their rows in the embedding; None: they have none.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    names = [f"<|new{number}|>" for number in range(count)]
    tokenizer.add_tokens(names, special_tokens=True)
    tokenizer.chat_template = CHATML.replace("<|im_start|>", "".join(names[1:]))
    if train is not None:
        model.resize_token_embeddings(len(tokenizer))
        train(model.get_input_embeddings().weight.data[-count:])
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="90KB")
    tokenizer.save_pretrained(folder)


def refusal(names: str) -> str:
    return (
        f"model.uri pvc://models/tiny: it has no trained embedding for {names}, which the rows have or their chat "
        "template adds, and an adapter does not train any. Fine-tune the whole model with these tokens first, or use a "
        "chat template and rows without them."
    )


def all_but_last(rows: torch.Tensor) -> torch.Tensor:
    """Give rows of a training to all but the last of them."""
    rows[:-1].normal_()
    return rows[-1]


def all_but_last_zero(rows: torch.Tensor) -> None:
    """Give rows of a training to all but the last of them, which gets none."""
    all_but_last(rows).zero_()


@pytest.mark.parametrize(
    ("name", "count", "train", "names"),
    [
        ("as transformers adds them", 3, lambda rows: rows, "<|new1|>, <|new2|>"),
        ("the same in bfloat16", 3, lambda rows: rows.copy_(rows.bfloat16()), "<|new1|>, <|new2|>"),
        ("zero", 3, all_but_last_zero, "<|new2|>"),
        ("a copy of another one's", 3, lambda rows: all_but_last(rows).copy_(rows[0]), "<|new2|>"),
        ("many", 8, torch.Tensor.zero_, "<|new1|>, <|new2|>, <|new3|>, <|new4|>, <|new5|> and 2 more"),
        ("beyond the embedding", 2, None, "<|new1|>"),
    ],
)
def test_added_tokens_without_trained_embeddings_are_refused(
    job: Job, folder: Path, name: str, count: int, train: Any, names: str
) -> None:
    add_tokens(folder, count, train)
    assert refused(job) == refusal(names)


def test_added_tokens_are_trained_by_method_full(job: Job, folder: Path) -> None:
    add_tokens(folder, 3, torch.Tensor.zero_)
    assert replace(job, spec=(("method", "Full"),)).prepare().rows == 36


def test_added_tokens_without_embeddings_are_refused_by_method_full(job: Job, folder: Path) -> None:
    add_tokens(folder, 3, None)
    assert "it has no embedding for <|new1|>, <|new2|>, which" in refused(replace(job, spec=(("method", "Full"),)))


@pytest.mark.parametrize(
    ("name", "count", "train"),
    [
        ("trained", 3, torch.Tensor.normal_),
        ("zero, but in no row", 1, torch.Tensor.zero_),
        ("beyond the embedding, but in no row, as in Gemma 3's 1B", 1, None),
    ],
)
def test_added_tokens_that_do_no_harm_are_accepted(job: Job, folder: Path, name: str, count: int, train: Any) -> None:
    add_tokens(folder, count, train)
    assert job.prepare().rows == 36


def test_added_tokens_have_embeddings_under_another_parent(
    job: Job, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_tokens(folder, 2, torch.Tensor.zero_)
    rename_weights(folder, lambda name: name.removeprefix("model."))
    assert refused(job) == refusal("<|new1|>")
    monkeypatch.setattr("sluice_trainer.data.weights.check_weights", lambda *_: None)  # as of a family that renames it
    rename_weights(folder, lambda name: f"{name}.of.another.kind")
    assert job.prepare().rows == 36
    assert "no weights of the shape of model.embed_tokens are called *.embed_tokens.weight" in capsys.readouterr().out


def rename_weights(folder: Path, new: Callable[[str], str]) -> None:
    """Rename the weights of a model in several files."""
    for shard in folder.glob("*.safetensors"):
        save_file({new(name): part for name, part in load_file(shard).items()}, shard)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = {new(name): file for name, file in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))


def test_added_tokens_of_a_model_in_a_store_are_looked_at_where_it_is(
    job: Job, folder: Path, s3: ObjectStore, secrets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_tokens(folder, 3, all_but_last_zero)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    write_secret(secrets, "store", s3.secret)
    for file in folder.iterdir():
        (s3.bucket("unfit") / file.name).write_bytes(file.read_bytes())
    remote = replace(job, spec=(("model", {"uri": "s3://unfit", "credentials": {"secret": "store"}}),))
    assert refused(remote) == refusal("<|new2|>").replace("pvc://models/tiny", "s3://unfit")
    assert not list((tmp_path / "scratch").rglob("*.safetensors"))


@pytest.mark.parametrize("content", [b"", bytes(20), (10**18).to_bytes(8, "little") + b"{}"])
def test_weights_that_are_none_are_refused(job: Job, folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert refused(job) == (
        "model.uri pvc://models/tiny: model.safetensors is no safetensors file, or is cut off. Restore it."
    )


@pytest.mark.parametrize(
    ("rank", "targets", "most"),
    [(64, [], None), (128, [], 64), (32, ["k_proj"], None), (64, ["k_proj"], 32), (64, ["k_proj", "q_proj"], None)],
)
def test_lora_rank_beyond_the_layers_is_refused(job: Job, rank: int, targets: list[str], most: int | None) -> None:
    """The model's linear layers are of 64 x 64 and 64 x 128; those of k_proj and v_proj, of 64 x 32."""
    job = replace(job, spec=(("lora", {"rank": rank, "targetModules": targets}),))
    if most is None:
        assert job.prepare().rows == 36
    else:
        assert refused(job) == (
            f"lora.rank {rank} is more than any of the model's chosen layers can have: the smaller side of the largest "
            f"has {most}. Set lora.rank to {most} or less."
        )


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("gpt2", "The model has no linear layer that an adapter could go beside (those of GPT-2 are of another kind)."),
        ("nonesuch", "model.uri pvc://models/tiny: transformers can't make a language model of its config.json: "),
    ],
)
def test_model_type_that_can_not_be_adapted_is_refused(job: Job, folder: Path, model_type: str, message: str) -> None:
    configure(folder, model_type=model_type)
    assert refused(job).startswith(message)


@pytest.mark.parametrize(
    ("config", "is_refused"),
    [
        ({"model_type": "mixtral", "num_local_experts": 4}, False),
        ({"model_type": "mixtral", "num_local_experts": 4, "output_router_logits": True}, True),
        (
            {
                "model_type": "mixtral",
                "num_local_experts": 4,
                "output_router_logits": True,
                "router_aux_loss_coef": 0.0,
            },
            False,
        ),
        ({"output_router_logits": True}, False),  # a Llama has no routers
    ],
)
def test_model_that_adds_its_routers_loss_is_refused(
    job: Job, folder: Path, config: dict[str, Any], is_refused: bool
) -> None:
    """Train refuses any other loss of a model's own by trying it (test_fused_loss.py)."""
    configure(folder, **config)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    if is_refused:
        assert refused(job) == (
            "model.uri pvc://models/tiny: its loss is more than the cross entropy of its logits, and that is what is "
            "trained. Turn its other loss off in config.json (output_router_logits: false), or choose a model that "
            "predicts the next token and nothing else."
        )
    else:
        assert job.prepare().rows == 36
