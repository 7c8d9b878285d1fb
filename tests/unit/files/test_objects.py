"""Object stores, against a real S3 server: what is read and written, and what every refusal says."""

import errno
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from operator import methodcaller
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import GenericError, InvalidPathError, PermissionDeniedError

from dev.cluster.ports import free_port
from sluice_api.pods import DISK_ENV
from sluice_files import objects, stores
from sluice_files.credentials import NOTHING, Credentials
from sluice_files.errors import Failure, FileError
from sluice_files.objects import ObjectFolder
from sluice_files.refusals import Asked, refusal
from tests.object_store import REGION, ObjectStore

PIECE = 2**16
PART = 5 * 2**20


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of several pieces are small, and what does not answer is not asked for a minute."""
    monkeypatch.setattr(objects, "_PIECE", PIECE)
    monkeypatch.setattr(objects, "_PART", PART)
    monkeypatch.setitem(stores._RETRIES, "max_retries", 0)


@pytest.fixture
def opens(s3: ObjectStore) -> Credentials:
    return Credentials("store", s3.secret)


@pytest.fixture
def bucket(s3: ObjectStore, request: pytest.FixtureRequest) -> str:
    name = f"b{abs(hash(request.node.nodeid)):x}"
    s3.bucket(name)
    return name


def test_object_files_come_back_as_they_went(bucket: str, opens: Credentials, tmp_path: Path) -> None:
    folder = ObjectFolder(f"s3://{bucket}/work/a job", opens)
    sizes = {"empty": 0, "small": 10, "one piece": PIECE, "a+b=é%20.bin": 3 * PIECE + 1, "parts": 2 * PART + 1}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(os.urandom(size))
        folder.put(tmp_path / name, f"files/{name}")
    folder.write("files/manifest.json", b"{}")
    assert {file.name: file.size for file in folder.names()} == {
        f"files/{name}": size for name, size in {**sizes, "manifest.json": 2}.items()
    }
    for name, size in sizes.items():
        assert folder.fetch(f"files/{name}", tmp_path / "back" / name) == size
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / name).read_bytes()
    assert folder.read("files/manifest.json") == b"{}"
    whole = (tmp_path / "a+b=é%20.bin").read_bytes()
    assert folder.ranges("files/a+b=é%20.bin", [5, PIECE], [7, 2**30]) == [whole[5:12], whole[PIECE:]]
    folder.delete(["files/small", "files/never was"])
    assert not folder.exists("files/small")
    assert folder.exists("files/empty")


def test_object_names_are_of_the_folder_and_in_order(s3: ObjectStore, bucket: str, opens: Credentials) -> None:
    root = ObjectFolder(f"s3://{bucket}", opens)
    for name in ("data/b", "data/a/1", "data-2/x", "data/a-1", "database"):
        root.write(name, b"1")
    root.write("data/a/0", b"")
    for folder in ("data", "data/a"):  # as consoles make a folder: an empty object whose name ends with /
        os.setxattr(s3.folder / bucket / folder, "user.etag", b"d41d8cd98f00b204e9800998ecf8427e")
    assert [file.name for file in root.names("data")] == ["data/a-1", "data/a/0", "data/a/1", "data/b"]
    below = ObjectFolder(f"s3://{bucket}/data/", opens)
    assert [file.name for file in below.names()] == ["a-1", "a/0", "a/1", "b"]
    assert [file.name for file in below.names("a")] == ["a/0", "a/1"]
    assert below.names("nowhere") == []


def test_object_of_other_bytes_has_another_etag(bucket: str, opens: Credentials) -> None:
    folder = ObjectFolder(f"s3://{bucket}", opens)
    folder.write("rows", b"1")
    before = folder.names()
    folder.write("rows", b"2")
    assert folder.names()[0].etag != before[0].etag != ""


def test_object_that_does_not_fit_is_not_fetched(
    bucket: str, opens: Credentials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ObjectFolder(f"s3://{bucket}", opens)
    folder.write("model", b"x" * 100)
    monkeypatch.setenv(DISK_ENV, "99")
    with pytest.raises(FileError, match=r"has room for 0\.0\. Raise resources\.ephemeralStorage") as raised:
        folder.fetch("model", tmp_path / "model")
    assert raised.value.failure is Failure.TOO_LARGE
    assert list(tmp_path.iterdir()) == []


def test_object_is_read_into_memory_only_if_it_is_small(
    bucket: str, opens: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "MAX_READ_BYTES", 5)
    folder = ObjectFolder(f"s3://{bucket}", opens)
    folder.write("config.json", b"123456")
    with pytest.raises(FileError, match="it has 6 bytes, and 5 are read"):
        folder.read("config.json")


def test_object_without_an_etag_is_whole_too(s3: ObjectStore, bucket: str, opens: Credentials, tmp_path: Path) -> None:
    content = os.urandom(3 * PIECE + 1)
    (s3.folder / bucket / "weights").write_bytes(content)  # not by the server, which so has no etag of it
    assert ObjectFolder(f"s3://{bucket}", opens).fetch("weights", tmp_path / "back") == len(content)
    assert (tmp_path / "back").read_bytes() == content


def test_object_is_whole_where_the_kernel_writes_only_a_part_at_once(
    bucket: str, opens: Credentials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pwrite does when a disk fills up, or the process gets a signal."""
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, start: pwrite(file, data[: len(data) // 2 + 1], start))
    folder = ObjectFolder(f"s3://{bucket}", opens)
    for size in (PIECE, 3 * PIECE + 1):
        folder.write("weights", content := os.urandom(size))
        folder.fetch("weights", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == content


@pytest.mark.parametrize(
    ("on", "says"),
    [
        (".", r"this pod's disk is full \([\d,]+ bytes are free\)\. Raise resources\.ephemeralStorage"),
        ("/dev/shm", r"the volume at /dev/shm/\w+ is full \([\d,]+ bytes are free\)\. Make room in it"),
    ],
)
def test_object_that_fills_a_disk_names_that_disk(
    bucket: str, opens: Credentials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on: str, says: str
) -> None:
    """A cache of models may be in a volume."""
    folder = ObjectFolder(f"s3://{bucket}", opens)
    folder.write("weights", b"1")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with tempfile.TemporaryDirectory(dir=tmp_path / on) as cache:
        with pytest.raises(FileError, match=says) as raised:
            folder.fetch("weights", Path(cache) / "weights")
        assert raised.value.failure is Failure.TOO_LARGE
        assert list(Path(cache).iterdir()) == []


class _CutOff(threading.Thread):
    """Passes bytes on to a server, and hangs up after so many of them, each time."""

    def __init__(self, endpoint: str, after: int) -> None:
        super().__init__(daemon=True)
        self._to = endpoint.removeprefix("http://").split(":")
        self._after = after
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def run(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        with client, socket.create_connection((self._to[0], int(self._to[1]))) as server, suppress(OSError):
            server.sendall(client.recv(65_536))
            left = self._after
            while left > 0 and (data := server.recv(min(left, 4096))):
                client.sendall(data)
                left -= len(data)

    def stop(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@pytest.fixture
def cut_off(s3: ObjectStore) -> Iterator[str]:
    proxy = _CutOff(s3.endpoint, PIECE)
    proxy.start()
    yield proxy.endpoint
    proxy.stop()


def test_object_that_is_cut_off_is_absent(
    bucket: str, opens: Credentials, s3: ObjectStore, cut_off: str, tmp_path: Path
) -> None:
    (tmp_path / "weights").write_bytes(os.urandom(3 * PIECE))
    ObjectFolder(f"s3://{bucket}", opens).put(tmp_path / "weights", "weights")
    folder = ObjectFolder(f"s3://{bucket}", Credentials("store", {**s3.secret, "AWS_ENDPOINT_URL": cut_off}))
    with pytest.raises(FileError) as raised:
        folder.fetch("weights", tmp_path / "back" / "weights")
    assert raised.value.failure is Failure.UNREACHABLE
    assert list((tmp_path / "back").iterdir()) == []


def test_object_that_is_replaced_meanwhile_is_not_mixed(
    bucket: str, opens: Credentials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ObjectFolder(f"s3://{bucket}", opens)
    for content in ("before", "after"):
        (tmp_path / content).write_bytes(os.urandom(2 * PIECE))
    folder.put(tmp_path / "before", "rows")
    asked = obstore.get

    def replaced_after_the_first(store: Any, name: str, **options: Any) -> Any:
        answer = asked(store, name, **options)
        if "options" not in options:
            folder.put(tmp_path / "after", "rows")
        return answer

    monkeypatch.setattr(obstore, "get", replaced_after_the_first)
    with pytest.raises(FileError, match="replaced while it was read"):
        folder.fetch("rows", tmp_path / "back")


NOWHERE = f"http://127.0.0.1:{free_port('127.0.0.1')}"


@pytest.mark.parametrize(
    ("changes", "failure", "says"),
    [
        ({"AWS_ACCESS_KEY_ID": "AKIANOBODY0123456789"}, Failure.REFUSED, "does not know the AWS_ACCESS_KEY_ID"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong-canary-0123"}, Failure.REFUSED, "AWS_SECRET_ACCESS_KEY does not belong to"),
        ({"AWS_SESSION_TOKEN": "over-canary-0123"}, Failure.REFUSED, "AWS_SESSION_TOKEN is over"),
        ({"AWS_REGION": "us-east-1"}, Failure.REFUSED, f"Add AWS_REGION={REGION} to the Secret store"),
        ({"AWS_ENDPOINT_URL": NOWHERE}, Failure.UNREACHABLE, "nobody listens there"),
        ({"AWS_ENDPOINT_URL": "http://nowhere.invalid"}, Failure.UNREACHABLE, "its name can't be resolved"),
        ({"AWS_ENDPOINT_URL": "minio:9000"}, Failure.REFUSED, "AWS_ENDPOINT_URL is no endpoint. Write http://"),
        ({"AWS_ENDPOINT_URL": "http://me:canary@minio"}, Failure.REFUSED, "AWS_ENDPOINT_URL is no endpoint"),
        ({"AWS_SECRET_ACCESS_KEY": None}, Failure.REFUSED, "has AWS_ACCESS_KEY_ID without AWS_SECRET_ACCESS_KEY"),
        (
            {"AWS_SECRET_ACCESS_KEY": None, "AWS_ACCESS_KEY_ID": None},
            Failure.REFUSED,
            "does not show it to everybody|refuses it to the credentials",
        ),
        (
            {"AWS_ENDPOINT_URL": "http://minio:9000/{bucket}"},
            Failure.REFUSED,
            "has the bucket .* in its path, which the address names already. Write it without: http://minio:9000$",
        ),
        ({"AWS_CA_BUNDLE": "/etc/ssl/ca.pem"}, Failure.REFUSED, "Correct the values of the Secret store"),
    ],
)
@pytest.mark.parametrize("ask", [methodcaller("read", "rows.jsonl"), methodcaller("exists", "rows.jsonl")])
def test_object_store_refuses(
    ask: methodcaller, changes: dict[str, str | None], failure: Failure, says: str, s3: ObjectStore, bucket: str
) -> None:
    given = {key: value for key, value in {**s3.secret, **changes}.items() if value is not None}
    values = {key: value.replace("{bucket}", bucket) for key, value in given.items()}
    with pytest.raises(FileError, match=says) as raised:
        ask(ObjectFolder(f"s3://{bucket}/data", Credentials("store", values)))
    assert raised.value.failure is failure
    assert raised.value.message.startswith(f"s3://{bucket}/data")
    assert raised.value.__context__ is None or raised.value.__suppress_context__
    assert not any(secret in raised.value.message for secret in ("canary", s3.secret["AWS_SECRET_ACCESS_KEY"]))


def test_object_store_that_speaks_no_tls_says_so(s3: ObjectStore, bucket: str) -> None:
    values = {**s3.secret, "AWS_ENDPOINT_URL": s3.endpoint.replace("http:", "https:")}
    with pytest.raises(FileError, match=r"does not speak TLS\. Write http://"):
        ObjectFolder(f"s3://{bucket}", Credentials("store", values)).names()


def test_bucket_is_in_the_hosts_name_if_the_secret_says_so() -> None:
    values = {"AWS_ENDPOINT_URL": "http://nowhere.invalid:9000", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true"}
    with pytest.raises(FileError, match=r"bucket\.nowhere\.invalid:9000 can't be reached"):
        ObjectFolder("s3://bucket/data", Credentials("store", values)).read("rows.jsonl")


@pytest.mark.parametrize("ask", [lambda folder: folder.names(), lambda folder: folder.read("rows.jsonl")])
def test_object_store_without_the_bucket_says_which(ask: object, opens: Credentials) -> None:
    with pytest.raises(FileError, match=r"has no bucket s3://no-such-bucket\. Correct the address") as raised:
        ask(ObjectFolder("s3://no-such-bucket/data", opens))  # type: ignore[operator]
    assert raised.value.failure is Failure.NOT_FOUND


@pytest.mark.parametrize(
    ("uri", "values", "says"),
    [
        ("gs://b/x", {"GOOGLE_APPLICATION_CREDENTIALS": "/tmp/key.json"}, "is not a file of JSON"),
        ("gs://b/x", {"GOOGLE_APPLICATION_CREDENTIALS": '{"type": "authorized_user"}'}, "of type authorized_user"),
        ("gs://b/x", {"GOOGLE_APPLICATION_CREDENTIALS": '{"type": "service_account"}'}, "missing field"),
        ("s3://b/x", {"AWS_ENDPOINT_URL": "http://[::1]:9", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "1"}, "an IP address"),
        ("az://c/x", {}, "needs credentials with the key AZURE_STORAGE_ACCOUNT"),
        ("az://c/x", {"AZURE_STORAGE_ACCOUNT": "a", "AZURE_STORAGE_KEY": "canary"}, "Invalid Access Key"),
        ("az://c/x", {"AZURE_STORAGE_ACCOUNT": "a", "AZURE_CLIENT_ID": "a"}, "without AZURE_CLIENT_SECRET, AZURE_TEN"),
    ],
)
def test_credentials_that_open_nothing_are_refused_before_anybody_is_asked(
    uri: str, values: dict[str, str], says: str
) -> None:
    with pytest.raises(FileError, match=says) as raised:
        ObjectFolder(uri, Credentials("store", values))
    assert raised.value.failure is Failure.REFUSED
    assert "canary" not in raised.value.message


@pytest.mark.parametrize(
    ("uri", "values"),
    [
        ("s3://b", {}),
        ("s3://b", {"AWS_REGION": "eu-west-1"}),
        ("gs://b", {}),
        ("az://c", {"AZURE_STORAGE_ACCOUNT": "a"}),
    ],
)
def test_metadata_service_is_never_asked(uri: str, values: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as metadata_service:
        address = f"127.0.0.1:{metadata_service.getsockname()[1]}"
        for name in ("AWS_METADATA_ENDPOINT", "AZURE_MSI_ENDPOINT", "IDENTITY_ENDPOINT"):
            monkeypatch.setenv(name, f"http://{address}")
        for name in ("GCE_METADATA_HOST", "GCE_METADATA_ROOT", "METADATA_HOST"):
            monkeypatch.setenv(name, address)
        monkeypatch.setenv("HTTPS_PROXY", NOWHERE)  # so that the cloud itself isn't asked
        with pytest.raises(FileError):
            ObjectFolder(uri, Credentials("store", values) if values else NOTHING).read("rows.jsonl")
        metadata_service.settimeout(0)
        with pytest.raises(BlockingIOError):
            metadata_service.accept()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            InvalidPathError('Encountered object with invalid path: Path "data//x" contained empty path segment'),
            r'Path "data//x" contained empty path segment\. Rename or delete what has such a name\.',
        ),
        (
            GenericError("Generic S3 error: Error performing GET - Received redirect without LOCATION, this normally"),
            r"in another region\. Add AWS_REGION to the Secret store \(aws s3api get-bucket-location --bucket b show",
        ),
        (
            GenericError("... status code: 403 Forbidden: <Error><Code>RequestTimeTooSkewed</Code></Error>"),
            r"s3 and this node do not agree on the time\. Set the node's clock\.",
        ),
        (
            PermissionDeniedError("... status code: 403 Forbidden: <Error><Code>InvalidObjectState</Code></Error>"),
            r"it lies in an archive, such as Glacier \(InvalidObjectState\)\. Restore it",
        ),
        (
            PermissionDeniedError("... status code: 403 Forbidden: <Error><Code>QuotaExceeded</Code></Error>"),
            r"the store has no room left, or a quota is used up \(QuotaExceeded\)\. Make room there\.",
        ),
        (
            PermissionDeniedError(
                "... status code: 403 Forbidden: <Error><Code>AccessDenied</Code><Message>User: arn:aws:iam::1:user/x "
                "is not authorized to perform: kms:Decrypt on resource y</Message></Error>"
            ),
            r"encrypted with a key that the credentials may not use \(AccessDenied\)\. Give them the right to use that",
        ),
        (
            PermissionDeniedError("... status code: 403 Forbidden: <Error><Code>AccessDenied</Code></Error>"),
            r"s3 refuses it to the credentials of the Secret store \(AccessDenied\)\. Give them the right to read it",
        ),
        (
            GenericError("... status code: 400 Bad Request: <Error><Code>KMS.DisabledException</Code></Error>"),
            r"the key that it is encrypted with is disabled or gone \(KMS\.DisabledException\)\. Enable the key",
        ),
        (
            PermissionDeniedError("... status code: 403 Forbidden: <Code>AuthorizationPermissionMismatch</Code>"),
            r"has no role for data \(AuthorizationPermissionMismatch\)\. Give it the role Storage Blob Data Contri",
        ),
        (
            PermissionDeniedError("... status code: 403 Forbidden: <Code>AuthorizationFailure</Code>"),
            r"the firewall of the storage account lets this pod not in \(AuthorizationFailure\)\. Allow its network",
        ),
        (
            PermissionDeniedError("... status code: 403 Forbidden: <Code>KeyBasedAuthenticationNotPermitted</Code>"),
            r"the storage account takes no keys \(KeyBasedAuthenticationNotPermitted\)\. Use AZURE_CLIENT_ID",
        ),
        (
            GenericError("... status code: 400 Bad Request: <Error><Code>UserProjectMissing</Code></Error>"),
            r"who reads this bucket pays for it, which is not possible here \(UserProjectMissing\)\. Copy it to a",
        ),
        (
            GenericError("... status code: 503 Service Unavailable: <Code>SlowDown</Code>"),
            r"answered 503 SlowDown\. Wait until",
        ),
    ],
)
def test_what_no_server_here_answers_is_told_too(error: Exception, says: str) -> None:
    asked = Asked("s3://b/data", "s3", Credentials("store", {"AWS_ACCESS_KEY_ID": "x"}))
    with pytest.raises(FileError, match=says):
        raise refusal(error, asked)


@pytest.mark.parametrize("name", ["a//b", "../b", "a/../b", ".", "/a", "a/"])
def test_object_name_of_no_file_is_refused_or_not_found(name: str, bucket: str, opens: Credentials) -> None:
    with pytest.raises(FileError) as raised:
        ObjectFolder(f"s3://{bucket}", opens).read(name)
    assert raised.value.failure in (Failure.INVALID, Failure.NOT_FOUND)
