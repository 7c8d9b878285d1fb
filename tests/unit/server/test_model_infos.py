"""The image's answers about model classes reach a new pod's cache."""

from pathlib import Path

import pytest

from sluice_server import model_infos


def test_a_new_pod_gets_what_the_image_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, cache = tmp_path / "image", tmp_path / "cache"
    (image / "modelinfos").mkdir(parents=True)
    (image / "modelinfos" / "llama.json").write_text("{}")
    monkeypatch.setattr(model_infos, "IN_IMAGE", image)
    model_infos.put_in_place(cache)
    model_infos.put_in_place(cache)  # a container that was restarted
    assert [file.name for file in (cache / "modelinfos").iterdir()] == ["llama.json"]


def test_an_image_without_any_starts_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_infos, "IN_IMAGE", tmp_path / "nothing")
    model_infos.put_in_place(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
