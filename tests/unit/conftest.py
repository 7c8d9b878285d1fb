"""Servers that several parts are tried against."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.object_store import ObjectStore, object_store


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A real S3 server. Each test makes its own buckets."""
    with object_store(tmp_path_factory.mktemp("s3")) as store:
        yield store


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where Secrets are mounted: a folder for each, a file for each of its keys."""
    folder = tmp_path / "credentials"
    folder.mkdir()
    monkeypatch.setenv("SLUICE_CREDENTIALS", str(folder))
    return folder
