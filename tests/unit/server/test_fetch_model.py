"""The container `model`: what it leaves for vLLM and the agent, and what it says when it can't."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sluice_api import pods
from sluice_api.artifacts import model_fingerprint
from sluice_api.inferenceengine import InferenceEngineSpec
from sluice_api.slots import SlotSpec
from sluice_files import hub as files_hub
from sluice_files import stores
from sluice_files.credentials import Credentials
from sluice_files.objects import ObjectFolder
from sluice_server import fetch_model, launch
from sluice_server.model import engine_model
from sluice_server.paths import ROOT_ENV, SlotPaths
from tests.hub import STRANGER, Hub, hub
from tests.object_store import SECRET, ObjectStore, write_secret
from tests.unit.server.folders import make_model


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlotPaths:
    monkeypatch.setenv(ROOT_ENV, str(tmp_path / "pod"))
    monkeypatch.setenv(fetch_model.TERMINATION_FILE_ENV, str(tmp_path / "termination"))
    monkeypatch.setitem(stores._RETRIES, "max_retries", 0)
    found = SlotPaths(tmp_path / "pod", 0, 0)
    found.cache.mkdir(parents=True)
    found.scratch.mkdir()
    return found


@pytest.fixture
def bucket(s3: ObjectStore) -> Path:
    folder = s3.bucket("engine-models")
    shutil.rmtree(folder / "llama", ignore_errors=True)
    make_model(folder / "llama")
    (folder / "llama" / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "chat.jinja").write_text("{{ messages[0] }}")
    return folder


def slot(**model: Any) -> SlotSpec:
    spec = {"model": {"uri": "s3://engine-models/llama", "credentials": {"secret": "models"}, **model}}
    return SlotSpec(namespace="demo", engine="chat", index=0, spec=InferenceEngineSpec.model_validate(spec))


def test_model_of_an_object_store_is_served_from_the_cache(
    paths: SlotPaths, bucket: Path, s3: ObjectStore, secrets: Path
) -> None:
    write_secret(secrets, "models", s3.secret)
    spec = slot(chatTemplate={"uri": "s3://engine-models/chat.jinja"})
    fetch_model.fetch(spec, paths)
    shutil.rmtree(secrets / "models")  # neither vLLM nor the agent has it
    model = engine_model(spec.spec, paths)
    assert model.folder.is_relative_to(paths.cache)
    assert model.known_fingerprint() == model_fingerprint(bucket / "llama")
    assert model.template == "{{ messages[0] }}"
    assert launch.prepared_command(spec, paths).arguments[1] == str(model.folder)


def test_what_is_in_the_cache_is_not_fetched_again(
    paths: SlotPaths, bucket: Path, s3: ObjectStore, secrets: Path
) -> None:
    write_secret(secrets, "models", s3.secret)
    fetch_model.fetch(slot(), paths)
    before = engine_model(slot().spec, paths).folder
    inodes = {file.name: file.stat().st_ino for file in before.iterdir()}
    fetch_model.fetch(slot(), paths)  # the next replica, or the next start
    assert {file.name: file.stat().st_ino for file in engine_model(slot().spec, paths).folder.iterdir()} == inodes
    other = make_model(paths.root / "other", seed=7)
    opens = Credentials("models", s3.secret)
    ObjectFolder("s3://engine-models/llama", opens).put(other / "model.safetensors", "model.safetensors")
    fetch_model.fetch(slot(), paths)
    after = engine_model(slot().spec, paths)
    assert after.folder != before  # who serves the old one goes on
    assert after.known_fingerprint() == model_fingerprint(bucket / "llama")


@pytest.mark.parametrize(
    ("model", "secret", "message"),
    [
        ({}, None, "the Secret models is not in this namespace, or has no key that opens such an address (AWS_"),
        ({}, {"HF_TOKEN": SECRET}, "the Secret models has HF_TOKEN, and no key that opens such an address: AWS_ACC"),
        ({"uri": "s3://engine-models/gone"}, {}, "s3://engine-models/gone: there is nothing below this address."),
        ({"uri": "s3://no-such-bucket/a"}, {}, "s3://no-such-bucket/a"),
        ({"chatTemplate": {"uri": "s3://engine-models/no.jinja"}}, {}, "s3://engine-models/no.jinja"),
    ],
)
def test_failure_is_in_the_termination_message(
    paths: SlotPaths, bucket: Path, s3: ObjectStore, secrets: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    caplog: pytest.LogCaptureFixture, model: dict[str, Any], secret: dict[str, str] | None, message: str,
) -> None:  # fmt: skip
    if secret is not None:
        write_secret(secrets, "models", secret or s3.secret)
    monkeypatch.setenv(pods.SLOT_ENV, slot(**model).to_json())
    with caplog.at_level(logging.DEBUG), pytest.raises(SystemExit) as raised:
        fetch_model.run()
    assert raised.value.code == (tmp_path / "termination").read_text()  # in the log too
    said = (tmp_path / "termination").read_text()
    assert message in said
    assert SECRET not in said + caplog.text
    assert not paths.at(pods.FETCHED_FILE).exists()


@pytest.fixture
def gated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(files_hub, "_RETRIES", 0)
    model = make_model(tmp_path / "model")
    with hub(tmp_path / "hub") as served:
        files = {file.name: file.read_bytes() for file in model.iterdir()}
        served.add("org/gated", {**files, "modeling.py": "raise SystemExit"}, gated=True)
        yield served


def test_gated_model_of_the_hub_is_served_from_its_cache(
    paths: SlotPaths, gated: Hub, secrets: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = slot(uri="hf://org/gated", credentials={"secret": "hub"})
    monkeypatch.setenv(pods.SLOT_ENV, spec.to_json())
    write_secret(secrets, "hub", {**gated.secret, "HF_TOKEN": STRANGER})
    with pytest.raises(SystemExit):
        fetch_model.run()
    said = (tmp_path / "termination").read_text()
    assert said.startswith("spec.model: hf://org/gated: the repository is gated")
    assert "Accept its licence at https://huggingface.co/org/gated" in said
    assert STRANGER not in said
    (secrets / "hub" / "HF_TOKEN").write_text(gated.secret["HF_TOKEN"])
    fetch_model.run()
    command = launch.prepared_command(spec, paths)  # the hub's cache has links
    assert sorted(path.name for path in Path(command.arguments[1]).iterdir()) == ["config.json", "model.safetensors"]
    assert command.environment["HF_HUB_OFFLINE"] == "1"


def test_gated_model_without_a_token_names_the_field(
    paths: SlotPaths, gated: Hub, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_secret(secrets, "hub", {"HF_ENDPOINT": gated.endpoint})
    monkeypatch.setenv(pods.SLOT_ENV, slot(uri="hf://org/gated", credentials={"secret": "hub"}).to_json())
    with pytest.raises(SystemExit, match=r"name a Secret with your token in spec\.model\.credentials"):
        fetch_model.run()
