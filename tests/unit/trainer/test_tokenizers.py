"""Tokenizers as models bring them: without an end token, with a template elsewhere, or with a class not theirs."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from tests.unit.trainer.jobs import REPOSITORY, Job, write_rows
from tests.unit.trainer.planting import of_tokenizer
from tests.unit.trainer.test_prepare import loss_and_all_text
from tests.unit.trainer.test_unfit_model import folder, refused

__all__ = ["folder"]

END = "<|im_end|>"
ASKED = {"prompt": "Hi", "completion": "Hello."}


@pytest.mark.parametrize("row", [ASKED, {"text": "Once upon a time."}])
def test_text_has_no_end_without_an_eos_token(job: Job, folder: Path, row: dict[str, Any]) -> None:
    """An adapter would learn never to stop. A chat template writes an end of its own."""
    of_tokenizer(eos_token=None, pad_token=None)(folder)
    write_rows(job.volumes / job.dataset, [row])
    if "prompt" in row:
        assert loss_and_all_text(job, [row])[0][0] == f"Hello.{END}"
        (folder / "chat_template.jinja").unlink()
        job = replace(job, name="bare")
    assert refused(job) == (
        "model.uri pvc://models/tiny: its tokenizer has no eos_token, with which an answer or a text ends: an adapter "
        "would learn never to stop. Set eos_token in its tokenizer_config.json."
    )


def test_template_of_a_processor_is_used(job: Job, folder: Path) -> None:
    """Models for images and text keep it in chat_template.json, which no tokenizer reads."""
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert loss_and_all_text(job, [ASKED]) == [
        (f"Hello.{END}", f"<|im_start|>user\nHi{END}\n<|im_start|>assistant\nHello.{END}\n")
    ]
    (folder / "chat_template.json").write_text("[]")
    assert refused(replace(job, name="other")).endswith(
        "chat_template.json is no object with a chat_template. Restore it."
    )


def test_class_that_loses_what_tokenizer_json_keeps_is_refused(job: Job, folder: Path) -> None:
    of_tokenizer(tokenizer_class="LlamaTokenizerFast")(folder)
    assert refused(job) == (
        "model.uri pvc://models/tiny: LlamaTokenizer, which its tokenizer_config.json names, loses spaces or line ends "
        "that its tokenizer.json keeps, here and when it serves. Set tokenizer_class to PreTrainedTokenizerFast there."
    )
    of_tokenizer(tokenizer_class="PreTrainedTokenizerFast")(folder)
    assert job.prepare().rows == 36


def test_tokenizer_of_sentencepiece_alone(job: Job, folder: Path) -> None:
    """As older Llamas have it: a tokenizer.model, and no tokenizer.json."""
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["Hi Hello user assistant"] * 50), model_writer=content, vocab_size=290,
        model_type="bpe", byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
        user_defined_symbols=["<|im_start|>", END],
    )  # fmt: skip
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(content.getvalue())
    about = {"tokenizer_class": "LlamaTokenizer", "eos_token": END, "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    write_rows(job.volumes / job.dataset, [ASKED])
    dataset = {"uri": f"pvc://{job.dataset}", "validationSplit": "0%"}
    job = replace(job, spec=(("dataset", dataset),))
    assert job.prepare().rows == 1


@pytest.mark.parametrize("name", ["sentencepiece", "protobuf"])
def test_image_has_what_reads_a_tokenizer_model(name: str) -> None:
    """transformers asks for them, and only for them, when it meets one."""
    assert f"\n{name}==" in (REPOSITORY / "trainer_image" / "requirements.lock").read_text()
