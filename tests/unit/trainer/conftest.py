"""A tiny model made in place, and volumes with it."""

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.object_store import ObjectStore, write_secret
from tests.unit.trainer import forked, groups
from tests.unit.trainer.jobs import ROWS, Job, write_rows

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Bits are equal only for the same number of threads; the tests' other processes have one too."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 80,000 random parameters with a byte-level tokenizer and a ChatML template."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    specials = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokens.train_from_iterator(["user assistant system item doubloons What is"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def volumes(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The claims models (with tiny), datasets (with rows.jsonl) and adapters (empty)."""
    monkeypatch.setenv("SLUICE_VOLUMES", str(tmp_path))
    monkeypatch.setenv("SLUICE_METRICS_PORT", "0")
    return new_volumes(tmp_path, tiny_model)


def new_volumes(folder: Path, model: Path) -> Path:
    """The claims in a folder."""
    (folder / "adapters").mkdir()
    (folder / "models" / "tiny").mkdir(parents=True)
    for file in model.iterdir():
        (folder / "models" / "tiny" / file.name).hardlink_to(file)
    write_rows(folder / "datasets" / "rows.jsonl", ROWS)
    return folder


@pytest.fixture(scope="session")
def parent() -> Iterator[forked.Parent]:
    """Starts stages quickly."""
    with forked.parent() as process:
        yield process


@pytest.fixture(scope="session")
def undisturbed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, parent: forked.Parent) -> forked.WholeJob:
    """The job of the tests that disturb it, when nobody does."""
    volumes = new_volumes(tmp_path_factory.mktemp("undisturbed"), tiny_model)
    return forked.run_to_the_end(parent, Job(volumes, training=forked.TRAINING))


@pytest.fixture
def job(volumes: Path) -> Job:
    """A small job on the tiny model."""
    return Job(volumes)


@pytest.fixture
def bucket(s3: ObjectStore) -> Path:
    """A bucket of one test."""
    return s3.bucket(f"b-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def stored_job(job: Job, s3: ObjectStore, bucket: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """The same job with its output in an object store."""
    write_secret(job.volumes / "credentials", "store", s3.secret)
    monkeypatch.setenv("SLUICE_CREDENTIALS", str(job.volumes / "credentials"))
    monkeypatch.setenv("SLUICE_WORK", str(job.volumes / "scratch"))
    output = {"uri": f"s3://{bucket.name}/out", "credentials": {"secret": "store"}}
    return replace(job, spec=(*job.spec, ("output", output)))


@pytest.fixture
def alone(job: Job) -> Job:
    """A job of one process, which a group is compared with."""
    write_rows(job.volumes / "datasets" / "rows.jsonl", groups.ROWS)
    dataset = {"uri": "pvc://datasets/rows.jsonl", "validationSplit": "38%"}
    return replace(job, name="alone", training=groups.SHORT, spec=(("dataset", dataset),))


@pytest.fixture
def pods(alone: Job, parent: forked.Parent) -> Iterator[groups.Pods]:
    """The pods of the job `group`; none of them outlives the test."""
    pods = groups.Pods(replace(alone, name="group"), parent)
    yield pods
    for pod in pods.all:
        pod.kill()
        pod.communicate()
        pod.stdout.close()
