"""Credentials: files of a Secret, and never a word of them."""

from pathlib import Path

import pytest

from sluice_api.sources import Credentials as Source
from sluice_files.credentials import NOTHING, Credentials, read_credentials
from sluice_files.errors import Failure, FileError
from tests.object_store import write_secret


def test_credentials_are_the_values_of_the_secrets_files(secrets: Path) -> None:
    write_secret(secrets, "store", {"AWS_ACCESS_KEY_ID": "id-123\n", "AWS_SECRET_ACCESS_KEY": "s3cr3t", "OTHER": "x"})
    found = read_credentials(Source(secret="store"), "s3://bucket/rows")
    assert dict(found.values) == {"AWS_ACCESS_KEY_ID": "id-123", "AWS_SECRET_ACCESS_KEY": "s3cr3t"}
    assert read_credentials(None, "s3://bucket/rows") is NOTHING


def test_credentials_show_no_value() -> None:
    credentials = Credentials("store", {"HF_TOKEN": "hf_canary01234", "AWS_REGION": "eu-west-1"})
    for shown in (repr(credentials), str(credentials), f"{credentials}", repr([credentials])):
        assert "canary" not in shown
        assert "HF_TOKEN" in shown
    assert credentials.hidden("GET /?token=hf_canary01234 in eu-west-1") == "GET /?token=*** in eu-west-1"


@pytest.mark.parametrize(
    "shown",
    [
        "a/b+canary c=", "a%2Fb%2Bcanary%20c%3D", "a/b%2Bcanary%20c%3D", "a%2Fb%2Bcanary+c%3D", "YS9iK2NhbmFyeSBjPQ==",
    ],
)  # fmt: skip
def test_secret_is_hidden_however_it_is_written(shown: str) -> None:
    credentials = Credentials("store", {"AWS_SECRET_ACCESS_KEY": "a/b+canary c="})
    assert credentials.hidden(f"403 <Key>{shown}</Key>") == "403 <Key>***</Key>"


def test_signature_of_an_address_is_hidden() -> None:
    said = (
        "GET https://b/x?X-Amz-Algorithm=AWS4&X-Amz-Credential=AKIA%2F1%2Fs3&X-Amz-Signature=0a1b&x-id=GetObject "
        "https://c/y?sv=2024&sig=aB%2Bc%3D&se=1 authorization: Bearer eyJ.x'"
    )
    assert NOTHING.hidden(said) == (
        "GET https://b/x?X-Amz-Algorithm=AWS4&X-Amz-Credential=***&X-Amz-Signature=***&x-id=GetObject "
        "https://c/y?sv=2024&sig=***&se=1 authorization: Bearer ***'"
    )
    assert NOTHING.hidden("a basic idea: the signature differs") == "a basic idea: the signature differs"


@pytest.mark.parametrize(
    ("uri", "values", "says"),
    [
        ("s3://b/x", None, "the Secret store is not in this namespace, or has no key that opens such an address (AWS_"),
        ("s3://b/x", {}, "AWS_ENDPOINT_URL_S3, AWS_VIRTUAL_HOSTED_STYLE_REQUEST, ...). Write each value into a file"),
        (
            "s3://b/x",
            {"aws_access_key": "canary"},
            "called otherwise here. Write AWS_ACCESS_KEY_ID instead of aws_acc",
        ),
        (
            "s3://b/x",
            {"AWS_ACCESS_KEY_ID": "canary", "AWS_SECRET_KEY": "canary", "aws_endpoint_url": "http://canary"},
            "Write AWS_SECRET_ACCESS_KEY instead of AWS_SECRET_KEY, AWS_ENDPOINT_URL instead of aws_endpoint_url.",
        ),
        ("hf://org/m", {"HF_token": "canary"}, "Write HF_TOKEN instead of HF_token."),
        ("s3://b/x", {"AKEY_REGION": "x"}, "has AKEY_REGION, and no key that opens such an address: AWS_REGION, AWS_"),
        (
            "s3://b/x",
            {"HF_TOKEN": "t"},
            "has HF_TOKEN, and no key that opens such an address: AWS_ACCESS_KEY_ID, AWS_S",
        ),
        ("hf://org/m", {"key": "t"}, "has key, and no key that opens such an address: HF_TOKEN, HF_ENDPOINT"),
        ("hf://org/m", {"HF_TOKEN": "hf_canary\nhf_second"}, "key HF_TOKEN of the Secret store has a line break"),
        ("hf://org/m", {"HF_TOKEN": " \n"}, "key HF_TOKEN of the Secret store is empty"),
        ("hf://org/m", {"HF_TOKEN": "canary" * 20_000}, "key HF_TOKEN of the Secret store is too long"),
        ("pvc://claim/x", {"HF_TOKEN": "t"}, "credentials do not open such an address. Leave them out"),
        ("https://host/x", {"HF_TOKEN": "t"}, "credentials do not open such an address. Leave them out"),
        ("configmap://name/x", {"HF_TOKEN": "t"}, "credentials do not open such an address. Leave them out"),
    ],
)
def test_credentials_that_open_nothing_say_what_would(
    uri: str, values: dict[str, str] | None, says: str, secrets: Path
) -> None:
    if values is not None:
        write_secret(secrets, "store", values)
    with pytest.raises(FileError) as raised:
        read_credentials(Source(secret="store"), uri)
    assert raised.value.failure is (Failure.INVALID if "Leave them out" in says else Failure.REFUSED)
    assert raised.value.message.startswith(uri)
    assert says in raised.value.message
    assert "canary" not in raised.value.message


def test_remedy_for_missing_credentials_is_of_where_it_runs(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileError, match=rf"into a file of its key's name in {secrets}/hub: HF_TOKEN, HF_ENDPOINT\.$"):
        read_credentials(Source(secret="hub"), "hf://org/model")
    monkeypatch.delenv("SLUICE_CREDENTIALS")
    create = r"Create it \(kubectl create secret generic hub --from-literal=HF_TOKEN=\.\.\.\)\.$"
    with pytest.raises(FileError, match=create):
        read_credentials(Source(secret="hub"), "hf://org/model")
    with pytest.raises(
        FileError, match=r"AWS_SECRET_ACCESS_KEY=\.\.\.\), with AWS_ENDPOINT_URL too unless it is Amazon's"
    ):
        read_credentials(Source(secret="store"), "s3://bucket/model")


def test_multi_line_values_are_taken_where_they_are_meant(secrets: Path) -> None:
    write_secret(secrets, "google", {"GOOGLE_APPLICATION_CREDENTIALS": '{\n  "type": "service_account"\n}\n'})
    assert "\n" in read_credentials(Source(secret="google"), "gs://b").values["GOOGLE_APPLICATION_CREDENTIALS"]
    write_secret(secrets, "own-ca", {"AWS_CA_BUNDLE": "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"})
    assert "\n" in read_credentials(Source(secret="own-ca"), "s3://b").values["AWS_CA_BUNDLE"]
