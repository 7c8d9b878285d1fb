"""How much still fits on a pod's own disk."""

import os
from pathlib import Path

import pytest

from sluice_api.pods import DISK_ENV, disk_room


def test_room_is_what_the_kubelet_allows_less_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv(DISK_ENV, "1000")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "here").write_bytes(b"x" * 100)
    (tmp_path / "link").symlink_to("folder/here")
    assert disk_room(tmp_path) == 900


def test_file_that_goes_meanwhile_takes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads beside this one are renamed when they are whole."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv(DISK_ENV, "1000")
    (tmp_path / "here").write_bytes(b"x" * 100)
    monkeypatch.setattr(os, "walk", lambda _: [(str(tmp_path), [], ["here", "gone"])])
    assert disk_room(tmp_path) == 900
