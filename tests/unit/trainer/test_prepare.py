"""What Prepare leaves behind: the right loss mask, a fair split, and the same again when run twice."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ConfigDict
from transformers import AutoTokenizer

from sluice_api.model import Model
from sluice_trainer import durable
from sluice_trainer.data.split import held_out, key_of
from sluice_trainer.errors import StageError
from sluice_trainer.token_rows import TokenRow, TokenRows
from tests.unit.trainer.jobs import ROWS, Job, chat, write_rows


def loss_and_all_text(job: Job, rows: list[Any]) -> list[tuple[str, str]]:
    """For each row, the text that the loss counts and the text that the model reads."""
    write_rows(job.volumes / job.dataset, rows)
    job.prepare()
    tokenizer = AutoTokenizer.from_pretrained(job.volumes / "models" / "tiny")
    prepared = job.prepared()
    halves: list[TokenRows] = [prepared.training, prepared.validation]
    tokens = [half[index] for half in halves for index in range(len(half))]
    return [(tokenizer.decode(row.input_ids[row.loss_mask == 1]), tokenizer.decode(row.input_ids)) for row in tokens]


TURNS = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "Bye"), ("assistant", "So long")]
CONVERSATION = {"messages": [{"role": role, "content": content} for role, content in TURNS]}
RENDERED = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in TURNS)


@pytest.mark.parametrize(
    ("name", "row", "in_loss", "read"),
    [
        ("only the assistant's turns, each with its end", CONVERSATION, "Hello!<|im_end|>So long<|im_end|>", RENDERED),
        (
            "instruction and input are what the user says",
            {"instruction": "Add", "input": "1 2", "output": "3"},
            "3<|im_end|>",
            "<|im_start|>user\nAdd\n\n1 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n",
        ),
        (
            "a prompt is what the user says",
            {"prompt": "1 + 2", "completion": "3"},
            "3<|im_end|>",
            "<|im_start|>user\n1 + 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n",
        ),
        ("of a text all is in the loss but its first token", {"text": "abc"}, "bc<|im_end|>", "abc<|im_end|>"),
        ("... two texts in one too", {"text": "ab<|im_end|>c"}, "b<|im_end|>c<|im_end|>", "ab<|im_end|>c<|im_end|>"),
        ("... or has an end", {"text": "abc<|im_end|>"}, "bc<|im_end|>", "abc<|im_end|>"),
    ],
)
def test_loss_mask_by_row_format(job: Job, name: str, row: Any, in_loss: str, read: str) -> None:
    assert loss_and_all_text(job, [row]) == [(in_loss, read)]


def test_loss_mask_without_a_chat_template_has_only_the_completion(job: Job) -> None:
    (job.volumes / "models" / "tiny" / "chat_template.jinja").unlink()
    assert loss_and_all_text(job, [{"prompt": "1+2=", "completion": "3"}]) == [("3<|im_end|>", "1+2=3<|im_end|>")]


def test_prompt_tokens_are_those_of_serving(job: Job) -> None:
    write_rows(job.volumes / job.dataset, [chat("Hi", "\n\nassistant")])
    job.prepare()
    tokenizer = AutoTokenizer.from_pretrained(job.volumes / "models" / "tiny")
    served = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)["input_ids"]
    row = job.prepared().training[0]
    assert row.input_ids[: len(served)].tolist() == served
    assert row.loss_mask.tolist().index(1) == len(served)


def test_overlong_rows_truncate(job: Job) -> None:
    write_rows(job.volumes / job.dataset, [chat("Hi", "word " * 300), *ROWS[:5]])
    result = replace(job, training=(("maxSequenceLength", 64),)).prepare()
    assert (result.overlong_rows, result.longest_row) == (1, 64)


def test_loss_mask_of_a_split_row_has_each_token_once(job: Job) -> None:
    write_rows(job.volumes / job.dataset, [{"text": "".join(chr(97 + index % 26) for index in range(200))}])
    job.prepare()
    whole = job.prepared().training[0]
    limits = (("maxSequenceLength", 32), ("overlongRows", "Split"))

    split = replace(job, name="split", training=limits)
    result = split.prepare()
    parts = [split.prepared().training[index] for index in range(result.rows)]

    in_loss = np.concatenate([part.input_ids[part.loss_mask == 1] for part in parts])
    assert in_loss.tolist() == whole.input_ids[whole.loss_mask == 1].tolist()
    assert {len(part.input_ids) for part in parts[:-1]} == {32}
    assert (result.overlong_rows, result.longest_row) == (1, 32)


def test_validation_split_keeps_the_parts_of_a_row_together(job: Job) -> None:
    write_rows(job.volumes / job.dataset, [{"text": letter * 200} for letter in "abcdefgh"])
    limits = (("maxSequenceLength", 16), ("overlongRows", "Split"))
    dataset = {"uri": f"pvc://{job.dataset}", "validationSplit": "25%"}
    result = replace(job, training=limits, spec=(("dataset", dataset),)).prepare()
    prepared = replace(job, training=limits, spec=(("dataset", dataset),)).prepared()

    sides = [
        {int(half[index].input_ids[5]) for index in range(len(half)) if len(half[index].input_ids) == 16}
        for half in (prepared.training, prepared.validation)
    ]
    assert result.overlong_rows == 8
    assert [len(side) for side in sides] == [6, 2]
    assert not sides[0] & sides[1]


def test_rows_keep_their_line_numbers(job: Job) -> None:
    """Behind blank lines and rows that are skipped, held out or not, and in parts."""
    texts = [{"text": letter * 40} for letter in "abcdefgh"]
    write_rows(job.volumes / job.dataset, ["", texts[0], "nonsense", *texts[1:]])
    dataset = {"uri": f"pvc://{job.dataset}", "validationSplit": "25%", "onBadRow": "Skip"}
    job = replace(job, training=(("maxSequenceLength", 16), ("overlongRows", "Split")), spec=(("dataset", dataset),))
    job.prepare()
    prepared = job.prepared()
    tokenizer = AutoTokenizer.from_pretrained(job.volumes / "models" / "tiny")
    halves: list[TokenRows] = [prepared.training, prepared.validation]
    found = [(tokenizer.decode(half[i].input_ids)[0], half[i].line) for half in halves for i in range(len(half))]
    lines = zip("abcdefgh", [2, *range(4, 11)], strict=True)
    assert sorted(found) == [letter_and_line for letter_and_line in lines for _ in range(3)]
    assert len(prepared.validation) == 2 * 3


def test_overlong_rows_drop(job: Job) -> None:
    write_rows(job.volumes / job.dataset, [chat("Hi", "word " * 300), *ROWS[:5]])
    result = replace(job, training=(("maxSequenceLength", 64), ("overlongRows", "Drop"))).prepare()
    assert (result.overlong_rows, result.rows + result.validation_rows, result.refused_rows) == (1, 5, 0)


def test_max_sequence_length_is_limited_by_the_model(job: Job) -> None:
    write_rows(job.volumes / job.dataset, [chat("Hi", "word " * 300), *ROWS[:5]])
    assert job.prepare().longest_row == 256


@pytest.mark.parametrize(
    ("rows", "split", "held"),
    [(40, "10%", 4), (3, "10%", 1), (1, "10%", 0), (2, "49%", 1), (40, "0%", 0), (40, "25%", 10)],
)
def test_validation_split_share(job: Job, rows: int, split: str, held: int) -> None:
    write_rows(job.volumes / job.dataset, ROWS[:rows])
    dataset = {"uri": f"pvc://{job.dataset}", "validationSplit": split}
    result = replace(job, spec=(("dataset", dataset),)).prepare()
    assert (result.rows, result.validation_rows) == (rows - held, held)


def keys_of(rows: list[TokenRow], seed: int) -> NDArray[np.uint64]:
    return np.array([key_of([row], seed) for row in rows], np.uint64)


def test_validation_split_keeps_equal_rows_together() -> None:
    rows = [TokenRow(np.array([i % 5], np.int32), np.array([1], np.uint8)) for i in range(50)]
    out = held_out(keys_of(rows, seed=1), 0.2)
    sides = [{bool(out[i]) for i in range(50) if i % 5 == content} for content in range(5)]
    assert sorted(map(len, sides)) == [1, 1, 1, 1, 1]
    assert sum(out) == 10


def test_validation_split_depends_on_the_seed_not_the_order() -> None:
    rows = [TokenRow(np.array([i], np.int32), np.array([1], np.uint8)) for i in range(50)]

    def chosen(rows: list[TokenRow], seed: int) -> set[int]:
        out = held_out(keys_of(rows, seed), 0.2)
        return {int(row.input_ids[0]) for row, is_out in zip(rows, out, strict=True) if is_out}

    assert chosen(rows, 1) == chosen(rows[::-1], 1)
    assert chosen(rows, 1) != chosen(rows, 2)


def test_prepare_again_finds_the_prepared_rows(job: Job) -> None:
    first = job.prepare()
    manifest = job.work / "prepared" / "manifest.json"
    written = manifest.stat().st_mtime_ns
    assert job.prepare() == first
    assert manifest.stat().st_mtime_ns == written


def test_prepared_rows_that_are_damaged_are_made_anew(job: Job) -> None:
    first = job.prepare()
    tokens = job.work / "prepared" / "input_ids.npy"
    good = tokens.read_bytes()
    tokens.write_bytes(good[:-1])
    assert job.prepare() == first
    assert tokens.read_bytes() == good
    assert {path.name for path in job.work.iterdir()} == {"prepared"}


def of_an_older_version(manifest: Path) -> None:
    """With other fields and a checksum, as versions before wrote it."""
    fields = json.loads(manifest.read_text())
    del fields["sha256"], fields["settings"]
    older = durable.sealed(OlderManifest(**fields | {"format": "sluice.prepared/v4", "resultPlan": "x"}))
    manifest.write_text(older)


class OlderManifest(Model):
    model_config = ConfigDict(extra="allow")


def test_prepared_rows_of_an_older_version_are_made_anew_and_say_so(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    first = job.prepare()
    manifest = job.work / "prepared" / "manifest.json"
    good = manifest.read_text()
    of_an_older_version(manifest)
    capsys.readouterr()
    assert job.prepare() == first
    assert manifest.read_text() == good
    assert "another version of Sluice prepared them (sluice.prepared/v4; this one reads" in capsys.readouterr().out


def test_rows_of_an_older_version_are_named_by_train_with_what_to_do(job: Job) -> None:
    job.prepare()
    of_an_older_version(job.work / "prepared" / "manifest.json")
    with pytest.raises(StageError) as raised:
        job.train()
    assert raised.value.message == (
        f"The prepared rows in {job.work}/prepared can't be used: another version of Sluice prepared them "
        "(sluice.prepared/v4; this one reads sluice.prepared/v5). Let Prepare make them anew: without a cluster, run "
        "the same command without --only; in a cluster, delete the job and create it again."
    )


def test_rows_for_other_settings_are_not_trained_on(job: Job) -> None:
    job.prepare()
    with pytest.raises(StageError, match="they were made for other settings"):
        replace(job, training=(("epochs", 9),)).train()
