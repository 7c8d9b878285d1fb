"""What a replica's vLLM is not started with."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from huggingface_hub import DryRunFileInfo

from sluice_api.inferenceengine import InferenceEngineSpec
from sluice_api.pods import DISK_ENV
from sluice_api.slots import SlotSpec
from sluice_server import launch
from sluice_server.paths import SlotPaths

GIB = 2**30


@pytest.fixture
def paths(tmp_path: Path) -> SlotPaths:
    return SlotPaths(tmp_path, 0, 0)


def test_model_with_a_link_out_of_its_folder_is_rejected(paths: SlotPaths) -> None:
    folder = paths.root / "volumes/models/tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    launch.check_model("pvc://models/tiny", paths)
    (folder / "chat_template.jinja").symlink_to(paths.secret_file)
    with pytest.raises(
        SystemExit, match=r"pvc://models/tiny: chat_template\.jinja is a link that leads out of the folder"
    ):
        launch.check_model("pvc://models/tiny", paths)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def has(size: int) -> None:
        def download(repository: str, *, revision: str | None, dry_run: bool, **_: object) -> list[DryRunFileInfo]:
            assert (repository, revision, dry_run) == ("org/name", "v1", True)
            sizes = ((size, True), (9 * GIB, False))  # the second one is there already
            return [DryRunFileInfo("4f3c", each, "x", "/x", not due, due) for each, due in sizes]

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)

    return has


def test_model_larger_than_the_disk_is_not_fetched(
    paths: SlotPaths, hub: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DISK_ENV, str(2 * GIB))
    hub(2 * GIB)
    launch.check_model("hf://org/name@v1", paths)
    hub(3 * GIB)
    with pytest.raises(
        SystemExit, match=r"hf://org/name@v1: its files have 3\.0 GiB, and this pod's disk has room for 2\.0"
    ):
        launch.check_model("hf://org/name@v1", paths)


@pytest.mark.parametrize(
    ("device", "cpu", "forked"),
    [("cpu", "1", True), ("cpu", "1900m", True), ("cpu", "2", False), ("cuda", "1", False)],
)
def test_engine_is_forked_on_a_cpu_with_one_thread_only(device: Literal["cpu", "cuda"], cpu: str, forked: bool) -> None:
    """OpenMP's threads are lost in a fork: an engine of two threads waited for them for ever."""
    spec = InferenceEngineSpec.model_validate({"model": {"uri": "pvc://models/tiny"}, "resources": {"cpu": cpu}})
    assert launch.may_fork(SlotSpec(namespace="demo", engine="chat", index=0, device=device, spec=spec)) is forked
