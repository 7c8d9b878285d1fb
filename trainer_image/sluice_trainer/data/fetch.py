"""Finds or downloads the file that a dataset's address names."""

from pathlib import Path

from sluice_api.dataset import Dataset, RowFiles
from sluice_api.reasons import Reason
from sluice_api.sources import volume_path
from sluice_trainer.data.read.row_file import RowFile
from sluice_trainer.errors import StageError
from sluice_trainer.paths import resolve_in_claim, why_not_found


def dataset_name(dataset: Dataset) -> str:
    """The dataset as messages show it: claim/path for a volume."""
    return ", ".join(uri.removeprefix("pvc://") for uri in dataset.uris[:3]) + (
        ", ..." if len(dataset.uris) > 3 else ""
    )


def row_files(files: RowFiles, field: str) -> list[RowFile]:
    """The files that an address names, on this machine; their paths have no links.

    Raises:
        StageError: DatasetNotFound, DatasetEmpty or DownloadFailed.
    """
    uri = files.uri or ""
    file = _dataset_file(uri)
    name = uri.removeprefix("pvc://")
    if file.stat().st_size == 0:
        raise StageError(Reason.DATASET_EMPTY, f"{name} is an empty file. Write one JSON object a line.")
    return [RowFile(file, name)]


def _dataset_file(uri: str) -> Path:
    """Return the dataset as a file on this machine, downloaded if need be; its path has no links.

    Raises:
        StageError: DatasetNotFound, DatasetEmpty or DownloadFailed.
    """
    path = volume_path(uri)
    if path is not None:
        file = resolve_in_claim(path)
        if file is None:
            raise StageError(
                Reason.DATASET_NOT_FOUND,
                f"dataset.uri {uri}: {why_not_found(path, 'file')} Correct dataset.uri.",
            )
    elif uri.startswith("hf://"):
        from sluice_trainer import hub

        file = hub.dataset_file(uri).resolve()
    else:
        from sluice_trainer.data import remote

        file = remote.fetch(uri).resolve()
    if file.is_dir():
        names = ", ".join(sorted(child.name for child in file.glob("*.jsonl"))[:8]) or "no *.jsonl file"
        raise StageError(
            Reason.DATASET_NOT_FOUND, f"dataset.uri {uri} is a folder (it has: {names}). Name one file of it."
        )
    return file
