"""What an adapter must be before vLLM sees it: files on disk in, a version or a refusal out."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sluice_api.artifacts import ADAPTER_FILES, adapter_digest
from sluice_api.meta import adapter_version
from sluice_api.reasons import Reason
from sluice_api.slots import SlotSpec
from sluice_server.agent import adapter_cache
from sluice_server.agent.adapter_cache import AdapterCache
from sluice_server.agent.rejected import AdapterRejected
from sluice_server.agent.resources import Key, WantedAdapter
from sluice_server.agent.tensors import MAX_ADAPTER_HEADER_BYTES, NotSafetensors, adapter_tensors, not_finite, tensors
from sluice_server.paths import SlotPaths
from tests.unit.server.conftest import SPEC
from tests.unit.server.folders import make_adapter, make_model, write_manifest

URI = "pvc://adapters/tone"


@dataclass
class Claims:
    """The volumes of a slot, with an adapter that is good until a test breaks it."""

    paths: SlotPaths

    def __post_init__(self) -> None:
        self.model = make_model(self.paths.root / "volumes/models/tiny")
        self.other = make_model(self.paths.root / "volumes/models/tiny-other", hidden=8)
        self.same_shape = make_model(self.paths.root / "volumes/models/tiny-again", seed=9)
        self.adapter = make_adapter(self.paths.root / "volumes/adapters/tone", self.model)
        self.weights = self.adapter / "adapter_model.safetensors"
        self.paths.adapters.mkdir()

    def configure(self, **fields: object) -> None:
        path = self.adapter / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    def change_weights(self, change: Callable[[dict[str, np.ndarray]], object]) -> None:
        weights = load_file(self.weights)
        change(weights)
        save_file(weights, self.weights)

    def fetch(self, uri: str = URI, digest: str | None = None, name: str = "tone", spec: SlotSpec = SPEC) -> str:
        adapter = WantedAdapter(name, Key("uid", 1), "2026-01-01", uri, digest)
        return AdapterCache(spec, self.paths).fetch(adapter)


@pytest.fixture
def claims(tmp_path: Path) -> Claims:
    return Claims(SlotPaths(tmp_path, 0, 0))


def test_adapter_is_copied_into_the_cache(claims: Claims) -> None:
    version = claims.fetch()
    folder = claims.paths.adapters / version
    assert version == adapter_version("tone", adapter_digest(claims.adapter))
    assert sorted(path.name for path in folder.iterdir()) == sorted(ADAPTER_FILES)
    assert adapter_digest(folder) == adapter_digest(claims.adapter)
    assert [path.name for path in claims.paths.adapters.iterdir()] == [version]
    assert claims.fetch() == version  # Again, over what is there.
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in folder.iterdir())


def test_manifest_of_our_export_is_accepted(claims: Claims) -> None:
    write_manifest(claims.adapter, claims.model)
    assert claims.fetch(digest=adapter_digest(claims.adapter))


def test_manifest_of_another_tool_is_ignored(claims: Claims) -> None:
    (claims.adapter / "manifest.json").write_text('{"version": 3}')
    assert claims.fetch()


def remove(path: Path) -> None:
    path.unlink()


def rank_zero(claims: Claims) -> None:
    make_adapter(claims.adapter, claims.model, r=0)
    claims.configure(r=4)


REFUSED: list[tuple[str, Callable[[Claims], object], str]] = [
    ("no folder", lambda c: c.adapter.rename(c.adapter.with_name("away")), "AdapterNotFound: {uri} has no "),
    ("no weights", lambda c: remove(c.weights), "AdapterNotFound: {uri} has no adapter_model.safe"),
    ("no JSON", lambda c: (c.adapter / "adapter_config.json").write_text("{"), "AdapterInvalid: {uri}: adapter"),
    ("no object", lambda c: (c.adapter / "adapter_config.json").write_text("[]"), "AdapterInvalid: {uri}: "),
    ("pickle", lambda c: c.weights.write_bytes(b"\x80\x04" * 99), "AdapterInvalid: {uri}: adapter_model."),
    ("cut short", lambda c: os.truncate(c.weights, 2000), "AdapterInvalid: {uri}: adapter_model.safetensors is "),
    ("empty file", lambda c: os.truncate(c.weights, 0), "AdapterInvalid: {uri}: adapter_model."),
    ("no tensors", lambda c: save_file({}, c.weights), "AdapterInvalid: {uri}: adapter_model.safetensors is empty"),
    ("DoRA", lambda c: c.configure(use_dora=True), "AdapterInvalid: {uri}: it uses DoRA, which vLLM can't serve"),
    ("head", lambda c: c.configure(modules_to_save=["lm_head"]), "AdapterInvalid: {uri}: it uses modules_to_save,"),
    ("lora bias", lambda c: c.configure(lora_bias=True), "AdapterInvalid: {uri}: it uses lora_bias,"),
    ("bias", lambda c: c.configure(bias="all"), "AdapterInvalid: {uri}: bias is 'all'"),
    ("IA3", lambda c: c.configure(peft_type="IA3"), "AdapterInvalid: {uri}: peft_type is 'IA3'. vLLM serves LORA only"),
    ("PiSSA", lambda c: c.configure(init_lora_weights="pissa"), "AdapterInvalid: {uri}: init_lora_weights is 'pissa'"),
    ("rank", lambda c: c.configure(r=9), "RankTooLarge: {uri} has rank 9, the engine's lora.maxRank is 8. Train with"),
    ("rank of one layer", lambda c: c.configure(rank_pattern={"q": 64}), "RankTooLarge: {uri} has rank 64"),
    ("no rank", lambda c: c.configure(r="4"), "AdapterInvalid: {uri}: r or rank_pattern"),
    ("infinite alpha", lambda c: c.configure(lora_alpha=float("inf")), "AdapterInvalid: {uri}: lora_alpha or alpha_"),
    ("alpha of one layer", lambda c: c.configure(alpha_pattern={"q": 1e30}), "AdapterInvalid: {uri}: lora_alpha or al"),
    ("alpha of thousands of digits", lambda c: c.configure(lora_alpha=10**4000), "AdapterInvalid: {uri}: lora_alpha"),
    ("no alpha", lambda c: c.configure(lora_alpha=None), "AdapterInvalid: {uri}: lora_alpha or alpha_pattern in adap"),
    (
        "tensors of rank 0",
        rank_zero,
        "AdapterInvalid: {uri}: lora_A and lora_B of model.layers.0.mlp.down_proj have shapes (0, 32) and (16, 0)",
    ),
    (
        "patterns that vLLM can't read",
        lambda c: c.configure(rank_pattern={"(": 4}),
        "AdapterInvalid: {uri}: rank_pattern or alpha_pattern in adapter_config.json has '(', which is no regular",
    ),
    ("half a pair", lambda c: c.change_weights(lambda w: w.pop(min(w))), "AdapterInvalid: {uri}: adapter_model."),
    (
        "more than LoRA",
        lambda c: c.change_weights(lambda w: w.update({"base_model.model.lm_head.weight": np.zeros((2, 2))})),
        "AdapterInvalid: {uri}: adapter_model.safetensors has base_model.model.lm_head.weight, which is no LoRA",
    ),
    (
        "not a number",
        lambda c: c.change_weights(lambda w: w[min(w)].fill(np.inf)),
        "AdapterInvalid: {uri}: base_model.model.model.layers.0.mlp.down_proj.lora_A.weight has NaN or infinite",
    ),
    (
        "another model's sizes",
        lambda c: make_adapter(c.adapter, c.other),
        "BaseModelDiffers: {uri} is no adapter of pvc://models/tiny: model.layers.0.mlp.down_proj is (16, 32) there",
    ),
    (
        "more layers than the model",
        lambda c: make_adapter(c.adapter, make_model(c.model.with_name("deep"), layers=3)),
        "BaseModelDiffers: {uri} is no adapter of pvc://models/tiny: it has weights for model.layers.2",
    ),
    (
        "other weights of the same shape",
        lambda c: write_manifest(c.adapter, c.same_shape, "pvc://models/tiny-again"),
        "BaseModelDiffers: {uri} is no adapter of pvc://models/tiny: it was trained on pvc://models/tiny-again.",
    ),
    (
        "changed after export",
        lambda c: write_manifest(c.adapter, c.model, digest="sha256:" + "0" * 64),
        "DigestDiffers: {uri} has digest",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("what", "break_it", "expected"), REFUSED, ids=[row[0] for row in REFUSED])
def test_adapter_is_rejected(claims: Claims, what: str, break_it: Callable[[Claims], object], expected: str) -> None:
    break_it(claims)
    with pytest.raises(AdapterRejected) as caught:
        claims.fetch()
    assert f"{caught.value.reason}: {caught.value}".startswith(expected.format(uri=URI))
    assert not [*claims.paths.adapters.iterdir()]


def test_source_digest_differs(claims: Claims) -> None:
    wanted = "sha256:" + "0" * 64
    with pytest.raises(
        AdapterRejected, match=f"source.digest asks for {wanted}. Restore the files, or correct the digest."
    ):
        claims.fetch(digest=wanted)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("pvc://elsewhere/tone", "chat mounts adapters, models. Add elsewhere to its lora.volumeClaims."),
        ("pvc://adapters/../models", "'..' is not allowed"),
        ("pvc://models/nowhere", "has no adapter_config.json"),
    ],
)
def test_source_uri_is_rejected(claims: Claims, uri: str, expected: str) -> None:
    with pytest.raises(AdapterRejected, match=expected):
        claims.fetch(uri)


def test_adapter_with_the_name_of_the_base_model_is_rejected(claims: Claims) -> None:
    with pytest.raises(AdapterRejected, match="chat is the base model's name: use another one"):
        claims.fetch(name="chat")


def test_link_is_followed_inside_the_claim_only(claims: Claims, tmp_path: Path) -> None:
    inside = claims.adapter.with_name("by-link")
    inside.symlink_to("tone")
    version = claims.fetch("pvc://adapters/by-link")
    outside = tmp_path / "secret"
    outside.write_text("token")
    config = claims.adapter / "adapter_config.json"
    config.unlink()
    config.symlink_to(outside)
    with pytest.raises(AdapterRejected, match=r"adapter_config.json is a link out of its claim") as caught:
        claims.fetch()
    assert "token" not in str(caught.value)
    config.unlink()
    os.mkfifo(config)
    with pytest.raises(AdapterRejected, match=r"adapter_config.json is no file"):
        claims.fetch()
    assert [path.name for path in claims.paths.adapters.iterdir()] == [version]


def test_safetensors_header_is_validated(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    headers = [
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 999]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-9, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1]}}',
        b'{"a": 1}',
        b"[]",
        b"[" * 5000,
        b"\xff\xff",
        b'{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F16", "shape": [1000000000000, 1000000000000], "data_offsets": [0, 8]}}',
    ]
    for header in headers:
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
        with pytest.raises(NotSafetensors):
            tensors(path)
    path.write_bytes((2**63).to_bytes(8, "little") + bytes(100))
    with pytest.raises(NotSafetensors):
        tensors(path)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b" " * (MAX_ADAPTER_HEADER_BYTES + 1), "has a header of 16,777,217 bytes, and 16,777,216 are read"),
        (b'{"a":[' + b"[]," * 200_000 + b"[]]}", "has more than 100,000 tensors"),
        (b'{"a":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, "has more than 100,000 tensors"),
    ],
    ids=["bytes", "lists", "objects"],
)
def test_header_of_an_adapter_is_bounded_before_it_is_parsed(
    tmp_path: Path, header: bytes, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    monkeypatch.setattr(json, "loads", lambda _: pytest.fail("it was parsed"))
    with pytest.raises(NotSafetensors, match=says):
        adapter_tensors(path)


def test_message_of_a_rejection_is_bounded() -> None:
    assert len(str(AdapterRejected(Reason.ADAPTER_INVALID, "a" * 10**6))) == 1024


def test_rejected_adapter_is_not_copied_again_before_its_files_change(
    claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[str] = []
    copy = adapter_cache._copy

    def counted(claim: Path, source: Path, *rest: Any) -> None:
        copied.append(source.name)
        copy(claim, source, *rest)

    monkeypatch.setattr(adapter_cache, "_copy", counted)
    cache = AdapterCache(SPEC, claims.paths)
    adapter = WantedAdapter("tone", Key("uid", 1), "2026-01-01", URI, None)
    claims.configure(r=64)
    for _ in range(3):
        with pytest.raises(AdapterRejected, match="has rank 64"):
            cache.fetch(adapter)
    assert len(copied) == len({*copied})
    with pytest.raises(AdapterRejected, match="has rank 64"):  # another generation of its spec is another adapter
        cache.fetch(replace(adapter, key=Key("uid", 2)))
    assert len(copied) == 2 * len({*copied})
    claims.configure(r=4)
    assert cache.fetch(replace(adapter, key=Key("uid", 2)))


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_not_finite_finds_every_nan_and_infinity(tmp_path: Path, dtype: str, wrong: float) -> None:
    path = tmp_path / "x.safetensors"
    numbers = np.full((3, 7), np.finfo(dtype).max, dtype)
    save_file({"a": numbers, "b": numbers.copy()}, path)
    assert not_finite(path, tensors(path)) is None
    numbers[2, 6] = wrong
    save_file({"a": np.zeros((3, 7), dtype), "b": numbers}, path)
    assert not_finite(path, tensors(path)) == "b"
