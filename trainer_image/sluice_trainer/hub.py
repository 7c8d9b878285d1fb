"""hf:// addresses: models and datasets from the Hugging Face hub, onto the pod's own disk."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from huggingface_hub import DryRunFileInfo, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sluice_api.pods import disk_room
from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode
from sluice_trainer.errors import StageError
from sluice_trainer.paths import scratch_folder

_MODEL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.safetensors")


@dataclass(frozen=True)
class HubPath:
    """hf://org/name@revision/path."""

    repository: str
    revision: str | None
    path: str

    @classmethod
    def parse(cls, uri: str) -> "HubPath":
        """Take an address apart; the revision is behind the repository's name."""
        organisation, _, rest = uri.removeprefix("hf://").partition("/")
        name, _, path = rest.partition("/")
        name, _, revision = name.partition("@")
        return cls(f"{organisation}/{name}", revision or None, path)


def model_folder(uri: str, revision: str = "") -> tuple[Path, str]:
    """Fetch a model's configuration, tokenizer and safetensors weights. Returns the folder and its commit.

    Args:
        uri: hf://org/name@revision.
        revision: A commit that an earlier stage used; it replaces the address's own revision.
    """
    source = HubPath.parse(uri)
    with _download_errors(uri, "model.uri", Reason.MODEL_NOT_FOUND):
        download = partial(
            snapshot_download,
            source.repository,
            revision=revision or source.revision,
            cache_dir=scratch_folder("hub"),
            allow_patterns=list(_MODEL_FILES),
        )
        _check_room(uri, "model.uri", download(dry_run=True))
        folder = download()
    return Path(folder), Path(folder).name


def dataset_file(uri: str) -> Path:
    """Fetch one file of a dataset repository."""
    source = HubPath.parse(uri)
    if not source.path:
        raise StageError(
            Reason.DATASET_NOT_FOUND,
            f"dataset.uri {uri} names a repository. Name one file of it: {uri.rstrip('/')}/<file>.jsonl.",
        )
    with _download_errors(uri, "dataset.uri", Reason.DATASET_NOT_FOUND):
        download = partial(
            hf_hub_download,
            source.repository,
            source.path,
            repo_type="dataset",
            revision=source.revision,
            cache_dir=scratch_folder("hub"),
        )
        _check_room(uri, "dataset.uri", [download(dry_run=True)])
        return Path(download())


def _check_room(uri: str, field: str, files: Iterable[DryRunFileInfo]) -> None:
    """Refuse a download that would fill the node's disk, before it begins: other pods would be evicted too.

    Raises:
        StageError: DownloadFailed, with both sizes.
    """
    size = sum(file.file_size or 0 for file in files if file.will_download)
    room = disk_room(scratch_folder("hub"))
    if size > room:
        raise StageError(
            Reason.DOWNLOAD_FAILED,
            f"{field} {uri}: its files have {size / 2**30:.1f} GiB, and this pod's disk has room for "
            f"{room / 2**30:.1f}. Raise resources.ephemeralStorage, or copy it into a volume and use pvc://.",
        )


@contextmanager
def _download_errors(uri: str, field: str, not_found: Reason) -> Iterator[None]:
    """Turn a failed download into an error that says whether the address or the network is wrong."""
    try:
        yield
    except GatedRepoError as error:
        raise StageError(
            Reason.DOWNLOAD_FAILED,
            f"{field} {uri}: the repository is gated. Copy it into a volume and use pvc://.",
        ) from error
    except LocalEntryNotFoundError as error:
        raise StageError(
            Reason.DOWNLOAD_FAILED,
            f"{field} {uri}: huggingface.co can't be reached from this pod. Check the network policy, or use pvc://.",
            ExitCode.INTERNAL,
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError, HFValidationError) as error:
        raise StageError(
            not_found,
            f"{field} {uri}: the hub has no such repository, revision or file, or does not show it without a token. "
            f"Correct {field}, or copy it into a volume and use pvc://.",
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise StageError(
            Reason.DOWNLOAD_FAILED, f"{field} {uri}: {error}. It is tried again.", ExitCode.INTERNAL
        ) from error
