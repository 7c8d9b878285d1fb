"""The image's answers about model classes reach a new pod's cache."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from sluice_server import model_infos


def test_model_infos_are_copied_into_a_new_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, cache = tmp_path / "image", tmp_path / "cache"
    (image / "modelinfos").mkdir(parents=True)
    (image / "modelinfos" / "llama.json").write_text("{}")
    monkeypatch.setattr(model_infos, "IN_IMAGE", image)
    model_infos.put_in_place(cache)
    model_infos.put_in_place(cache)  # a container that was restarted
    assert [file.name for file in (cache / "modelinfos").iterdir()] == ["llama.json"]


def test_model_infos_may_be_missing_in_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_infos, "IN_IMAGE", tmp_path / "nothing")
    model_infos.put_in_place(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_model_infos_are_readable_by_every_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM writes its cache for its own user alone (seen in an image that root had built)."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", "as it was")
    monkeypatch.setattr(model_infos, "IN_IMAGE", tmp_path)

    def inspect_model_cls() -> None:
        (tmp_path / "modelinfos").mkdir()
        (tmp_path / "modelinfos" / "llama.json").touch(mode=0o600)

    registry = ModuleType("registry")
    registry.ModelRegistry = SimpleNamespace(  # type: ignore[attr-defined]
        models={"LlamaForCausalLM": SimpleNamespace(inspect_model_cls=inspect_model_cls)}
    )
    for name in ("vllm", "vllm.model_executor", "vllm.model_executor.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "vllm.model_executor.models.registry", registry)

    model_infos.collect(["LlamaForCausalLM"])
    assert (tmp_path / "modelinfos" / "llama.json").stat().st_mode & 0o777 == 0o644
