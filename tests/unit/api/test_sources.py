"""Which addresses of datasets the API server takes, and which it refuses before anything is made."""

import pytest
from pydantic import TypeAdapter, ValidationError

from sluice_api.sources import DatasetUri, shown

ADDRESS = TypeAdapter[str](DatasetUri)


@pytest.mark.parametrize(
    "uri",
    [
        "https://host/rows.jsonl",
        "https://host",
        "https://host:8443/a/b.jsonl?X-Signature=a:b@c#d",
        "https://host?key=1",
        "https://[2001:db8::1]:8443/rows.jsonl",
        "https://user@host/rows.jsonl",
    ],
)
def test_dataset_address_is_accepted(uri: str) -> None:
    assert ADDRESS.validate_python(uri) == uri


@pytest.mark.parametrize(
    "uri",
    ["https://", "https:///rows.jsonl", "https://host:https/x", "https://[::1/x", "https://host:/x"],
)
def test_invalid_dataset_address_is_refused(uri: str) -> None:
    with pytest.raises(ValidationError):
        ADDRESS.validate_python(uri)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("https://host/rows.jsonl", "https://host/rows.jsonl"),
        ("https://host/rows.csv?sig=SECRET&user=me@host#SECRET", "https://host/rows.csv"),
        ("https://host?SECRET", "https://host"),
        ("https://host/a#SECRET/b?SECRET", "https://host/a"),
        ("https://me:SECRET@host:8443/a@b/rows.jsonl", "https://host:8443/a@b/rows.jsonl"),
        ("https://SECRET@[2001:db8::1]:8443/x?/y", "https://[2001:db8::1]:8443/x"),
        ("pvc://datasets/part-?.jsonl", "pvc://datasets/part-?.jsonl"),
        ("s3://bucket/a@b/*.jsonl", "s3://bucket/a@b/*.jsonl"),
    ],
)
def test_address_is_shown_without_what_may_open_it(uri: str, expected: str) -> None:
    assert shown(uri) == expected
