"""hf:// addresses: what they mean, and whose fault it is when they can't be fetched."""

from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import DryRunFileInfo
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from sluice_api.pods import DISK_ENV
from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode
from sluice_trainer import hub
from sluice_trainer.errors import StageError

ANSWER = httpx2.Response(404, request=httpx2.Request("GET", "https://huggingface.co"))


@pytest.mark.parametrize(
    ("uri", "repository", "revision", "path"),
    [
        ("hf://org/name", "org/name", None, ""),
        ("hf://org/name@v1", "org/name", "v1", ""),
        ("hf://org/name@v1/data/rows.jsonl", "org/name", "v1", "data/rows.jsonl"),
        ("hf://org/name/rows.jsonl", "org/name", None, "rows.jsonl"),
    ],
)
def test_hub_path_parse(uri: str, repository: str, revision: str | None, path: str) -> None:
    assert hub.HubPath.parse(uri) == hub.HubPath(repository, revision, path)


def test_hub_model_is_fetched_at_the_recorded_commit_without_pickles(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {}

    def download(repository: str, *, dry_run: bool = False, **options: Any) -> str | list[DryRunFileInfo]:
        asked.update(options, repository=repository)
        return [] if dry_run else str(tmp_path / "4f3c")

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert hub.model_folder("hf://org/name@main", "4f3c") == (tmp_path / "4f3c", "4f3c")
    assert (asked["repository"], asked["revision"]) == ("org/name", "4f3c")
    assert not any(Path("pytorch_model.bin").match(pattern) for pattern in asked["allow_patterns"])


@pytest.mark.parametrize(
    ("error", "reason", "code"),
    [
        (RepositoryNotFoundError("", response=ANSWER), Reason.MODEL_NOT_FOUND, ExitCode.BAD_INPUT),
        (GatedRepoError("", response=ANSWER), Reason.DOWNLOAD_FAILED, ExitCode.BAD_INPUT),
        (LocalEntryNotFoundError("offline"), Reason.DOWNLOAD_FAILED, ExitCode.INTERNAL),
        (HfHubHTTPError("500", response=ANSWER), Reason.DOWNLOAD_FAILED, ExitCode.INTERNAL),
    ],
)
def test_hub_errors_become_outcomes(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: Reason, code: ExitCode
) -> None:
    def download(repository: str, **options: Any) -> str:
        raise error

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(StageError, match=r"model\.uri hf://org/name") as raised:
        hub.model_folder("hf://org/name")
    assert (raised.value.reason, raised.value.code) == (reason, code)


GIB = 2**30


def file(size: int | None, *, cached: bool = False) -> DryRunFileInfo:
    return DryRunFileInfo("4f3c", size, "x", "/x", is_cached=cached, will_download=not cached)


@pytest.mark.parametrize(
    ("files", "fits"),
    [
        ([file(GIB), file(GIB)], True),
        ([file(GIB), file(GIB + 1)], False),
        ([file(GIB), file(9 * GIB, cached=True)], True),
        ([file(None), file(3 * GIB)], False),
    ],
)
@pytest.mark.parametrize("field", ["model.uri", "dataset.uri"])
def test_hub_download_that_does_not_fit_does_not_begin(
    field: str, files: list[DryRunFileInfo], fits: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(DISK_ENV, str(2 * GIB))
    begun: list[str] = []

    def download(repository: str, *_: str, dry_run: bool = False, **options: Any) -> Any:
        if dry_run:
            return files if field == "model.uri" else DryRunFileInfo("4f3c", total, "x", "/x", False, True)
        begun.append(repository)
        return str(tmp_path / "4f3c")

    total = sum(each.file_size or 0 for each in files if each.will_download)
    monkeypatch.setattr(hub, "snapshot_download", download)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    fetch = hub.model_folder if field == "model.uri" else hub.dataset_file
    if fits:
        fetch("hf://org/name/rows.jsonl")
    else:
        with pytest.raises(StageError, match=rf"{field} .* GiB, and this pod's disk has room for 2\.0\. Raise"):
            fetch("hf://org/name/rows.jsonl")
    assert bool(begun) is fits


def test_hub_dataset_needs_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageError, match=r"names a repository\. Name one file of it") as raised:
        hub.dataset_file("hf://org/name")
    assert raised.value.reason == Reason.DATASET_NOT_FOUND
