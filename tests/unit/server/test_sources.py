"""Adapters from an object store: fetched once, checked as those of a volume are, and kept where the engine says."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from sluice_api.artifacts import adapter_digest
from sluice_api.inferenceengine import InferenceEngineSpec
from sluice_api.meta import adapter_version
from sluice_api.slots import SlotSpec
from sluice_files import models, stores
from sluice_files.objects import ObjectFolder
from sluice_server.agent.adapter_cache import AdapterCache
from sluice_server.agent.rejected import AdapterRejected
from sluice_server.agent.resources import Key, WantedAdapter
from sluice_server.paths import SlotPaths
from tests.object_store import SECRET, ObjectStore, write_secret
from tests.unit.server.folders import make_adapter, make_model, write_manifest

URI = "s3://engine-adapters/tone"


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlotPaths:
    monkeypatch.setitem(stores._RETRIES, "max_retries", 0)
    found = SlotPaths(tmp_path / "pod", 0, 0)
    for folder in (found.cache, found.adapters):
        folder.mkdir(parents=True)
    make_model(found.root / "volumes/models/tiny")
    return found


@pytest.fixture
def adapter(s3: ObjectStore, paths: SlotPaths, secrets: Path) -> Path:
    write_secret(secrets, "adapters", s3.secret)
    folder = s3.bucket("engine-adapters") / "tone"
    shutil.rmtree(folder, ignore_errors=True)
    model = paths.root / "volumes/models/tiny"
    make_adapter(folder, model)
    write_manifest(folder, model)
    return folder


def slot(**model: Any) -> SlotSpec:
    spec = {
        "model": {"uri": "pvc://models/tiny", **model},
        "lora": {"maxRank": 8, "credentials": {"secret": "adapters"}},
    }
    return SlotSpec(namespace="demo", engine="chat", index=0, spec=InferenceEngineSpec.model_validate(spec))


def wanted(uri: str = URI, digest: str | None = None, name: str = "tone") -> WantedAdapter:
    return WantedAdapter(name, Key("uid", 1), "2026-01-01", uri, digest)


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    fetch = ObjectFolder.fetch

    def noted(folder: ObjectFolder, name: str, path: Path) -> int:
        names.append(name)
        return fetch(folder, name, path)

    monkeypatch.setattr(ObjectFolder, "fetch", noted)
    return names


def test_adapter_is_fetched_and_leaves_nothing_but_its_version(paths: SlotPaths, adapter: Path) -> None:
    cache = AdapterCache(slot(), paths)
    version = cache.fetch(wanted(digest=adapter_digest(adapter)))
    assert version == adapter_version("tone", adapter_digest(adapter))
    assert adapter_digest(cache.path(version)) == adapter_digest(adapter)
    assert cache.versions() == {version}
    assert not [*paths.adapters.rglob("*.lock"), *paths.cache.iterdir()]


def test_cache_claim_keeps_it_for_the_next_replica(paths: SlotPaths, adapter: Path, downloads: list[str]) -> None:
    for _ in range(2):
        version = AdapterCache(slot(cacheClaim="cache"), paths).fetch(wanted())
        shutil.rmtree(paths.adapters / version)
    assert len(downloads) == len({*downloads})


def test_rejected_adapter_is_fetched_again_only_when_it_changes(
    paths: SlotPaths, adapter: Path, downloads: list[str]
) -> None:
    config = adapter / "adapter_config.json"
    good = config.read_text()
    config.write_text(json.dumps(json.loads(good) | {"r": 64}))
    (adapter / "manifest.json").unlink()
    cache = AdapterCache(slot(), paths)
    for _ in range(3):
        with pytest.raises(AdapterRejected, match="has rank 64"):
            cache.fetch(wanted())
    assert len(downloads) == len({*downloads})
    config.write_text(good)
    assert cache.fetch(wanted())


def test_what_was_fetched_of_an_adapter_that_is_deleted_goes(paths: SlotPaths, adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text("[]")
    cache = AdapterCache(slot(), paths)
    with pytest.raises(AdapterRejected, match="is not a JSON object"):
        cache.fetch(wanted())
    assert [*paths.adapters.rglob("adapter_model.safetensors")]
    cache.keep(["other"])
    assert not [*paths.adapters.rglob("adapter_model.safetensors")]


@pytest.mark.parametrize(
    ("uri", "reason", "message"),
    [
        (f"{URI}/gone", "AdapterNotFound", "s3://engine-adapters/tone/gone: there is nothing below this address."),
        ("s3://engine-adapters", "AdapterNotFound", "s3://engine-adapters has no adapter_config.json"),
        ("hf://org/adapter", "AccessRefused", "the Secret adapters has AWS_ACCESS_KEY_ID"),
    ],
)
def test_adapter_that_cannot_be_had_is_rejected(
    paths: SlotPaths, adapter: Path, uri: str, reason: str, message: str
) -> None:
    with pytest.raises(AdapterRejected) as raised:
        AdapterCache(slot(), paths).fetch(wanted(uri))
    assert (raised.value.reason, message in str(raised.value)) == (reason, True), str(raised.value)
    assert SECRET not in str(raised.value)


def test_secret_that_is_missing_is_named(paths: SlotPaths, adapter: Path, secrets: Path) -> None:
    shutil.rmtree(secrets / "adapters")
    with pytest.raises(AdapterRejected, match="the Secret adapters is not in this namespace, or has no key"):
        AdapterCache(slot(), paths).fetch(wanted())


def test_digest_is_checked_of_what_was_fetched(paths: SlotPaths, adapter: Path) -> None:
    with pytest.raises(AdapterRejected, match=r"source\.digest asks for sha256:0"):
        AdapterCache(slot(), paths).fetch(wanted(digest="sha256:" + "0" * 64))


def test_address_of_a_whole_bucket_is_refused_before_it_takes_much_memory(
    paths: SlotPaths, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_MAX_FILES", 4)
    for number in range(5):
        (adapter.parent / f"{number}").touch()
    with pytest.raises(AdapterRejected) as raised:
        AdapterCache(slot(), paths).fetch(wanted("s3://engine-adapters"))
    assert str(raised.value) == ("source.uri s3://engine-adapters: more than 4 files are there. Name a folder in it.")
    assert AdapterCache(slot(), paths).fetch(wanted())


def test_adapter_with_a_file_that_is_too_large_is_refused_before_it_is_fetched(
    paths: SlotPaths, adapter: Path, downloads: list[str]
) -> None:
    os.truncate(adapter / "adapter_config.json", 2**20 + 1)
    with pytest.raises(AdapterRejected) as raised:
        AdapterCache(slot(), paths).fetch(wanted())
    assert str(raised.value) == (
        f"source.uri {URI}: adapter_config.json has 1,048,577 bytes, and at most 1,048,576 are fetched. Correct the "
        "address."
    )
    assert (raised.value.reason, downloads) == ("AdapterInvalid", [])
