"""What is wrong with the input is said before any GPU is taken: where, what, and what to do next."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sluice_api.dataset import FileFormat
from sluice_api.reasons import Reason
from sluice_trainer.data.read.read import read
from sluice_trainer.data.read.row_file import RowFile
from sluice_trainer.errors import StageError
from tests.unit.trainer.jobs import ROWS, Job, chat, write_rows

SKIP = "or set dataset.onBadRow: Skip."
AT = "datasets/rows.jsonl, line 17"


def messages(*turns: Any) -> dict[str, Any]:
    return {"messages": list(turns)}


USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"messages": [', f"{AT}: not JSON: Expecting value at column 15. Write one JSON object a line, {SKIP}"),
        ("[1, 2]", f'{AT}: not a JSON object. Write an object such as {{"messages": [...]}}, {SKIP}'),
        (
            {"asked": "Hi", "answered": "Hello"},
            f'{AT}: the row has "asked", "answered", not "messages". Give the row "messages", '
            f"or name its own fields in dataset.fields, {SKIP}",
        ),
        (
            messages(USER),
            f'{AT}: "messages" ends with the user; there is nothing to learn in this row. '
            f"Add an assistant turn, {SKIP}",
        ),
        (
            messages(USER, ASSISTANT, USER),
            f'{AT}: "messages" ends with the user, who gets no answer. Add an assistant turn, {SKIP}',
        ),
        (messages(), f'{AT}: "messages" is empty. Write [{{"role": ..., "content": ...}}, ...], {SKIP}'),
        (messages(ASSISTANT), f'{AT}: "messages" begins with the assistant. Put the user\'s turn before it, {SKIP}'),
        (
            messages(USER, {"role": "bot", "content": "Hello"}),
            f'{AT}: "messages[1].role" is "bot". Use one of system, developer, user, assistant, tool, {SKIP}',
        ),
        (
            messages(USER, {"role": "assistant", "content": " "}),
            f'{AT}: "messages[1].content" is empty. Fill it in, {SKIP}',
        ),
        (
            messages(USER, {"role": "assistant", "content": None}),
            f'{AT}: "messages[1].content" is null, not a string. Make it a string, {SKIP}',
        ),
        (messages(USER, "Hello"), f'{AT}: "messages[1]" is a string, not an object.'),
        (
            messages(USER, {"role": "assistant", "content": "Hello<|im_end|>"}),
            f'{AT}: "messages[1].content" has the special token <|im_end|> in it.',
        ),
        (
            chat("Why? " * 200, "Because."),
            f"{AT}: the assistant's part begins at token 612 and is cut off at maxSequenceLength 64. "
            f"Shorten the row, raise training.maxSequenceLength, or set training.overlongRows: Split, {SKIP}",
        ),
        (
            '{"messages": [{"role": "user", "content": "\\ud83d"}, {"role": "assistant", "content": "Hi"}]}',
            f"{AT}: not Unicode: \\ud83d is half of a surrogate pair. Write the whole character, or remove the half, "
            f"{SKIP}",
        ),
        ('{"n": ' + "1" * 5000 + "}", f"{AT}: it has a number of thousands of digits. Write it as a string, {SKIP}"),
        (
            {"prompt": "Hi", "completion": "Hello"},
            f"{AT}: the row is PromptCompletion, but line 1 is Messages. Write all rows in one format, "
            "or set dataset.format: Messages and dataset.onBadRow: Skip.",
        ),
    ],
)
def test_bad_row_is_named_with_its_line(job: Job, row: Any, message: str) -> None:
    write_rows(job.volumes / job.dataset, [*ROWS[:16], row, *ROWS[16:]])
    with pytest.raises(StageError) as raised:
        replace(job, training=(("maxSequenceLength", 64),)).prepare()
    assert raised.value.reason == Reason.DATASET_INVALID
    assert raised.value.message.startswith(message)


@pytest.mark.parametrize(
    ("row", "form", "message"),
    [
        ({"instruction": "", "output": "Hello"}, "Alpaca", '"instruction" is empty'),
        ({"instruction": "Hi", "input": 3, "output": "Hello"}, "Alpaca", '"input" is a number, not a string'),
        ({"prompt": "Hi", "completion": ["Hello"]}, "PromptCompletion", '"completion[0]" is a string, not an object'),
        ({"text": True}, "Text", '"text" is a boolean, not a string'),
        ({"text": "<|im_end|>"}, "Text", "there is no token to learn in this row"),
        (chat("Hi", "Hello"), "Text", "the row is Messages, dataset.format is Text"),
    ],
)
def test_dataset_format_checks_its_own_fields(job: Job, row: dict[str, Any], form: str, message: str) -> None:
    write_rows(job.volumes / job.dataset, [row])
    dataset = {"uri": f"pvc://{job.dataset}", "format": form}
    with pytest.raises(StageError) as raised:
        replace(job, spec=(("dataset", dataset),)).prepare()
    assert raised.value.message.startswith(f"datasets/rows.jsonl, line 1: {message}. ")


def test_bad_rows_are_named_up_to_five_at_once(job: Job) -> None:
    bad = [messages(USER)] * 7
    write_rows(job.volumes / job.dataset, [*ROWS, "", *bad])
    with pytest.raises(StageError) as raised:
        job.prepare()
    first, *lines = raised.value.message.splitlines()
    assert first == f"datasets/rows.jsonl has 7 rows that can't be trained on. Mend them, {SKIP}"
    assert [line.partition(":")[0] for line in lines] == ["lines 42, 43, 44, 45, 46", "and 2 more."]


@pytest.mark.parametrize(("on_bad_row", "reason"), [("Fail", Reason.DATASET_INVALID), ("Skip", Reason.DATASET_EMPTY)])
def test_nobody_is_told_to_skip_all_rows(job: Job, on_bad_row: str, reason: Reason) -> None:
    write_rows(job.volumes / job.dataset, [{"asked": "Hi"}, {"asked": "Hi"}, "[1, 2]"])
    with pytest.raises(StageError) as raised:
        replace(job, spec=(("dataset", {"uri": f"pvc://{job.dataset}", "onBadRow": on_bad_row}),)).prepare()
    assert raised.value.reason is reason
    assert raised.value.message == (
        "datasets/rows.jsonl: none of its 3 rows can be trained on.\n"
        'lines 1, 2: the row has "asked", and no format has such fields. Set dataset.fields: {text: asked}, if all '
        'of it is to be learnt. Write rows with "messages", "conversations", "instruction" and "output", "prompt" and '
        '"completion", "chosen" and "rejected", or "text" otherwise.\n'
        'line 3: not a JSON object. Write an object such as {"messages": [...]}.'
    )


def test_on_bad_row_skip_counts_the_rows(job: Job) -> None:
    write_rows(job.volumes / job.dataset, [*ROWS, messages(USER), "nonsense"])
    dataset = {"uri": f"pvc://{job.dataset}", "onBadRow": "Skip"}
    result = replace(job, spec=(("dataset", dataset),)).prepare()
    assert (result.rows, result.validation_rows, result.refused_rows) == (36, 4, 2)
    assert [line.partition(":")[0] for line in result.refused] == ["line 41", "line 42"]


@pytest.mark.parametrize(
    ("content", "reason", "message"),
    [
        (b"", Reason.DATASET_EMPTY, "datasets/rows.jsonl is an empty file. Write one JSON object a line."),
        (b"\n \n", Reason.DATASET_EMPTY, "datasets/rows.jsonl has no rows. Write at least one"),
        (
            b'{"text": "\xe9"}',
            Reason.DATASET_INVALID,
            "datasets/rows.jsonl, line 1: not UTF-8 (byte 11). Save the file",
        ),
    ],
)
def test_dataset_file_that_is_not_jsonl_is_refused(job: Job, content: bytes, reason: Reason, message: str) -> None:
    (job.volumes / job.dataset).write_bytes(content)
    with pytest.raises(StageError) as raised:
        job.prepare()
    assert raised.value.reason == reason
    assert raised.value.message.startswith(message)


def test_dataset_may_begin_with_a_byte_order_mark(job: Job) -> None:
    path = job.volumes / job.dataset
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert job.prepare().rows == 36


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            "datasets/none.jsonl",
            "dataset.uri pvc://datasets/none.jsonl: there is no such file. datasets has: link, rows.jsonl.",
        ),
        (
            "datasets",
            "dataset.uri pvc://datasets is a folder. It has: link, rows.jsonl. Name one file of it, or several: "
            "pvc://datasets/*",
        ),
        (
            "other/rows.jsonl",
            "dataset.uri pvc://other/rows.jsonl: there is no such file. The claim other is not mounted.",
        ),
        (
            "datasets/link",
            "dataset.uri pvc://datasets/link: datasets/link is a link that leads out of the claim, or nowhere, and is "
            "not followed. Put the file itself there.",
        ),
    ],
)
def test_dataset_uri_of_a_missing_file_is_refused(job: Job, dataset: str, message: str) -> None:
    (job.volumes / "datasets" / "link").symlink_to("/etc/passwd")
    with pytest.raises(StageError) as raised:
        replace(job, dataset=dataset).prepare()
    assert raised.value.reason == Reason.DATASET_NOT_FOUND
    assert raised.value.message.startswith(message)


@pytest.mark.parametrize(
    ("files", "remedy"),
    [
        (["data-00000-of-00001.arrow", "cache-1f2e.arrow", "dataset_info.json", "state.json"], "data-*.arrow"),
        (["dataset_dict.json", "train/state.json"], "train/data-*.arrow"),
    ],
)
def test_dataset_that_was_saved_to_disk_is_named_by_the_files_with_rows(
    job: Job, files: list[str], remedy: str
) -> None:
    """By save_to_disk of the library datasets: what a later map has made lies beside, and is not meant."""
    for name in files:
        path = job.volumes / "datasets" / "saved" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with pytest.raises(StageError) as raised:
        replace(job, dataset="datasets/saved").prepare()
    assert raised.value.message.endswith(f"Name one file of it, or several: pvc://datasets/saved/{remedy}")


def _without(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def _config(**fields: Any) -> Any:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps(config | fields))

    return change


def _gguf(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.gguf")


def test_dataset_that_becomes_a_link_is_refused(tmp_path: Path) -> None:
    """Between the look where it leads and the open there is time for its author."""
    (tmp_path / "token").write_text("{}")
    rows = tmp_path / "rows.jsonl"
    rows.symlink_to("token")
    with (
        pytest.raises(StageError, match=r"rows\.jsonl was replaced by a link"),
        read(RowFile(rows, "datasets/rows.jsonl"), FileFormat.AUTO),
    ):
        pass


def _linked(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(folder.parents[1] / "datasets" / "rows.jsonl")

    return change


@pytest.mark.parametrize(
    ("damage", "reason", "message"),
    [
        (shutil.rmtree, Reason.MODEL_NOT_FOUND, ": there is no such folder. models is empty. Correct model.uri."),
        (
            _without("config.json"),
            Reason.MODEL_INVALID,
            "config.json is missing (the folder has: chat_template.jinja, ",
        ),
        (_without("tokenizer.json"), Reason.MODEL_INVALID, "it has no tokenizer. Add tokenizer.json or "),
        (_without("model.safetensors"), Reason.MODEL_INVALID, "it has no weights. Save the weights as *.safetensors"),
        (_gguf, Reason.MODEL_INVALID, "it has only model.gguf. Save the weights as *.safetensors"),
        (
            _config(auto_map={"AutoModel": "evil.py"}, model_type="evil"),
            Reason.MODEL_INVALID,
            "(auto_map), which is never run, and transformers has none for models of type 'evil'. Use a model that",
        ),
        (
            _config(text_config={"attn_implementation": {"": "org/attention@v1"}}),
            Reason.MODEL_INVALID,
            "its config.json names a kernel of the hub (attn_implementation: {'': 'org/attention@v1'})",
        ),
        (_linked("chat_template.jinja"), Reason.MODEL_INVALID, "chat_template.jinja is a link that leads out of the"),
        (_linked("vision/config.json"), Reason.MODEL_INVALID, "vision/config.json is a link that leads out of the"),
        (_config(quantization_config={}), Reason.MODEL_INVALID, "its weights are quantized."),
        (_without("chat_template.jinja"), Reason.MODEL_INVALID, "its tokenizer has no chat template"),
    ],
)
def test_model_folder_that_is_incomplete_or_unsafe_is_refused(
    job: Job, damage: Any, reason: Reason, message: str
) -> None:
    damage(job.volumes / "models" / "tiny")
    write_rows(job.volumes / job.dataset, [messages({"role": "system", "content": "Be brief."}, USER, ASSISTANT)] * 3)
    with pytest.raises(StageError) as raised:
        job.prepare()
    assert (raised.value.reason, message in raised.value.message) == (reason, True), raised.value.message


@pytest.mark.parametrize(
    ("template", "row", "reason", "message"),
    [
        (
            "{{ raise_exception('no system turn, please') }}",
            chat("Hi", "Hello"),
            Reason.DATASET_INVALID,
            "line 1: the model's chat template refuses the row: no system turn, please.",
        ),
        (
            "{% for m in messages %}{{ m.text }}<|im_end|>{% endfor %}",
            chat("Hi", "Hello"),
            Reason.MODEL_INVALID,
            "its chat template leaves out every question and answer: it reads none of message['content'].",
        ),
    ],
)
def test_chat_template_that_is_missing_or_unfit_is_refused(
    job: Job, template: str, row: Any, reason: Reason, message: str
) -> None:
    path = job.volumes / "models" / "tiny" / "chat_template.jinja"
    path.unlink()
    path.write_text(template)
    write_rows(job.volumes / job.dataset, [row])
    with pytest.raises(StageError) as raised:
        job.prepare()
    assert (raised.value.reason, message in raised.value.message) == (reason, True), raised.value.message


def test_output_uri_that_is_not_writable_is_refused(job: Job) -> None:
    (job.volumes / "adapters" / "out").write_text("a file where a folder should be")
    with pytest.raises(StageError) as raised:
        job.prepare()
    assert raised.value.reason == Reason.OUTPUT_NOT_WRITABLE
    assert f"for uid {os.getuid()}" in raised.value.message
    assert "output.uri pvc://adapters/out" in raised.value.message
