"""What a replica's vLLM is started with, and not started with."""

from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pytest

from sluice_api import pods
from sluice_api.inferenceengine import InferenceEngineSpec
from sluice_api.slots import SlotSpec
from sluice_server import launch
from sluice_server.flags import Command
from sluice_server.model import Fetched
from sluice_server.paths import SlotPaths
from tests.unit.server.folders import make_model


@pytest.fixture
def paths(tmp_path: Path) -> SlotPaths:
    return SlotPaths(tmp_path, 0, 0)


def slot(**model: Any) -> SlotSpec:
    spec = InferenceEngineSpec.model_validate({"model": {"uri": "pvc://models/tiny", **model}})
    return SlotSpec(namespace="demo", engine="chat", index=0, device="cpu", spec=spec)


@pytest.fixture
def folder(paths: SlotPaths) -> Path:
    folder = make_model(paths.root / "volumes/models/tiny")
    paths.scratch.mkdir()
    return folder


def after(flag: str, command: Command) -> str:
    return command.arguments[command.arguments.index(flag) + 1]


def test_model_with_a_link_out_of_its_folder_is_rejected(paths: SlotPaths, folder: Path) -> None:
    launch.prepared_command(slot(), paths)
    (folder / "chat_template.jinja").symlink_to(paths.secret_file)
    with pytest.raises(
        SystemExit, match=r"pvc://models/tiny: chat_template\.jinja is a link that leads out of the folder"
    ):
        launch.prepared_command(slot(), paths)


def test_model_that_is_not_there_is_named(paths: SlotPaths) -> None:
    with pytest.raises(SystemExit, match=r"model\.uri pvc://models/tiny: there is no such folder\. Correct model\.uri"):
        launch.prepared_command(slot(), paths)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"config.json": None}, r"has no config\.json, so it is no model\. It has: model\.safetensors\. Correct model"),
        ({"config.json": None, "snapshots": ""}, r"below snapshots/ that a commit names\. Correct model\.uri"),
        ({"config.json": None, "adapter_config.json": "{}"}, r"It is an adapter: serve its base model"),
        ({"config.json": None, "model.safetensors": None, "q4.gguf": ""}, r"GGUF files, which are not served"),
        ({"config.json": "{"}, r"its config\.json can't be read as JSON\. Restore it\."),
        ({"config.json": "[]"}, r"its config\.json is no JSON object"),
        ({"model.safetensors": None}, r"has no weights, neither .* It has: config\.json\. Copy them"),
        ({"model.safetensors": "torn"}, r"model\.safetensors is damaged.* Copy it again"),
        ({"model.safetensors": "\x02\0\0\0\0\0\0\0{}x"}, r"model\.safetensors is damaged"),
        ({"model.safetensors": '\x21\0\0\0\0\0\0\0{"a": {"data_offsets": [0, "x"]}}'}, r"safetensors is damaged"),
    ],
)
def test_folder_that_is_no_whole_model_says_why(
    paths: SlotPaths, folder: Path, changes: dict[str, str | None], says: str
) -> None:
    for name, content in changes.items():
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(content)
    with pytest.raises(SystemExit, match=rf"^model\.uri pvc://models/tiny: .*{says}"):
        launch.prepared_command(slot(), paths)


def test_model_in_mistrals_own_format_is_left_to_vllm(paths: SlotPaths, folder: Path) -> None:
    (folder / "config.json").rename(folder / "params.json")
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    assert launch.prepared_command(slot(), paths).arguments[1] == str(folder)


def test_pickles_are_read_only_where_there_is_nothing_else(paths: SlotPaths, folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    assert after("--load-format", launch.prepared_command(slot(), paths)) == "safetensors"
    (folder / "model.safetensors").unlink()
    assert after("--load-format", launch.prepared_command(slot(), paths)) == "hf"


@pytest.mark.parametrize(
    "template",
    [{"inline": "{{ messages }}"}, {"uri": "pvc://models/t.jinja"}, {"uri": "configmap://templates/t.jinja"},
     {"uri": "s3://templates/t.jinja"}],
    ids=str,
)  # fmt: skip
def test_chat_template_of_the_spec_is_vllms(paths: SlotPaths, folder: Path, template: dict[str, str]) -> None:
    for file in ("volumes/models/t.jinja", "configmaps/templates/t.jinja", pods.FETCHED_TEMPLATE):
        paths.at(f"/{file.lstrip('/')}").parent.mkdir(parents=True, exist_ok=True)
        paths.at(f"/{file.lstrip('/')}").write_text("{{ messages }}")
    file = after("--chat-template", launch.prepared_command(slot(chatTemplate=template), paths))
    assert Path(file).read_text() == "{{ messages }}"


def test_chat_template_that_cannot_be_had_is_named(paths: SlotPaths, folder: Path) -> None:
    with pytest.raises(SystemExit, match=r"model\.chatTemplate\.uri pvc://models/no\.jinja: there is no such file"):
        launch.prepared_command(slot(chatTemplate={"uri": "pvc://models/no.jinja"}), paths)


def test_fetched_model_is_served_from_where_it_is(paths: SlotPaths) -> None:
    make_model(paths.cache / "a1b2")
    paths.scratch.mkdir()
    paths.at(pods.SHARED).mkdir(parents=True)
    paths.at(pods.FETCHED_FILE).write_text(Fetched(folder=PurePosixPath("/cache/a1b2"), fingerprint="f").to_json())
    for uri in ("hf://org/name@v1", "s3://bucket/model"):
        assert launch.prepared_command(slot(uri=uri), paths).arguments[1] == str(paths.cache / "a1b2")


@pytest.mark.parametrize(
    ("device", "cpu", "forked"),
    [("cpu", "1", True), ("cpu", "1900m", True), ("cpu", "2", False), ("cuda", "1", False)],
)
def test_engine_is_forked_on_a_cpu_with_one_thread_only(device: Literal["cpu", "cuda"], cpu: str, forked: bool) -> None:
    """OpenMP's threads are lost in a fork: an engine of two threads waited for them for ever."""
    spec = InferenceEngineSpec.model_validate({"model": {"uri": "pvc://models/tiny"}, "resources": {"cpu": cpu}})
    assert launch.may_fork(SlotSpec(namespace="demo", engine="chat", index=0, device=device, spec=spec)) is forked
