"""hf:// addresses: models, adapters and datasets of a hub that speaks Hugging Face's API."""

from dataclasses import dataclass
from pathlib import Path

from sluice_files.credentials import NOTHING, Credentials


@dataclass(frozen=True)
class HubPath:
    """hf://org/name@revision/path, and hf://datasets/org/name@revision/path."""

    repository: str
    revision: str | None
    path: str
    is_dataset: bool = False
    """Whether the address says so; hf://org/name/path is a dataset's too where a dataset is asked for."""

    @classmethod
    def parse(cls, uri: str) -> "HubPath":
        """Take an address apart; the revision is behind the repository's name."""
        raise NotImplementedError


@dataclass(frozen=True)
class FetchedFile:
    """A file on this machine's disk."""

    path: Path
    """Without links."""
    name: str
    """In its repository or folder, such as data/train-00000-of-00001.parquet."""


def dataset_files(
    uri: str, cache: Path, credentials: Credentials = NOTHING, config: str | None = None, split: str | None = None
) -> list[FetchedFile]:
    """Fetch the files of a split of a dataset, or the files that the address's own path means, sorted by name.

    Raises:
        FileError: NotFound names the configurations and splits, or the files, that are there.
    """
    raise NotImplementedError
