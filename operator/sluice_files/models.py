"""Models in object stores and on the hub: which files they are, their fingerprint, and how they come onto a disk."""

from dataclasses import dataclass
from pathlib import Path

from sluice_files.credentials import NOTHING, Credentials


@dataclass(frozen=True)
class FetchedModel:
    """A model, or an adapter, on this machine's disk."""

    folder: Path
    revision: str
    """The hub's commit; empty for an object store."""
    fingerprint: str
    """artifacts.model_fingerprint, whether or not the weights are here; empty for an adapter."""


def fetch_model(
    uri: str, cache: Path, credentials: Credentials = NOTHING, revision: str = "", *, weights: bool = True
) -> FetchedModel:
    """A model's configuration, tokenizer and weights in a folder below `cache`. Other processes may ask for it too.

    Args:
        uri: hf://org/name@revision, or s3://bucket/path (gs:// and az:// too).
        cache: a folder on this machine's disk, where what was fetched before is found again.
        credentials: read_credentials of that address.
        revision: a commit of the hub that an earlier stage used; it replaces the address's own.
        weights: False: everything but the weights, whose fingerprint is then of samples that are read from afar.

    Raises:
        FileError: TooLarge: the disk below `cache` has no room for it; and all others.
    """
    raise NotImplementedError


def fetch_adapter(uri: str, cache: Path, credentials: Credentials = NOTHING, revision: str = "") -> FetchedModel:
    """The adapter at an address, in a folder below `cache`: its configuration, weights and manifest.

    Raises:
        FileError: it is not there, or can't be had.
    """
    raise NotImplementedError
