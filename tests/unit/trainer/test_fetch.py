"""Rows and models from where people keep them: the files that each address means, and what is said of none."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sluice_api.artifacts import model_fingerprint
from sluice_api.dataset import RowFiles
from sluice_api.pods import DISK_ENV
from sluice_api.reasons import Reason
from sluice_api.sources import Credentials
from sluice_api.stages import ExitCode
from sluice_files import hub as hub_module
from sluice_files import stores
from sluice_trainer import base_model
from sluice_trainer.data.fetch import MAX_SMALL_BYTES, row_files, small_file
from sluice_trainer.errors import StageError
from tests.hub import Hub, hub
from tests.object_store import ObjectStore, write_secret
from tests.unit.trainer.jobs import ROWS, Job, write_rows

ROW = '{"text": "x"}\n'
FIELD = "dataset.sources[0].uri"


@pytest.fixture(autouse=True)
def quickly_and_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub_module, "_RETRIES", 0)
    monkeypatch.setitem(stores._RETRIES, "max_retries", 0)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))


@pytest.fixture
def bucket(s3: ObjectStore, secrets: Path, request: pytest.FixtureRequest) -> Path:
    """A bucket as a folder, which the Secret store opens."""
    write_secret(secrets, "store", s3.secret)
    return s3.bucket(f"t{abs(hash(request.node.nodeid)):x}")


@pytest.fixture
def served(tmp_path: Path, secrets: Path) -> Iterator[Hub]:
    with hub(tmp_path / "hub") as stand_in:
        write_secret(secrets, "hub", stand_in.secret)
        yield stand_in


def files(folder: Path, **contents: str) -> Path:
    for name, content in contents.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def rows_at(uri: str, secret: str | None = None, **more: Any) -> list[tuple[str, str]]:
    """Name and content of each file that an address means."""
    credentials = Credentials(secret=secret) if secret else None
    found = row_files(RowFiles(uri=uri, credentials=credentials, **more), FIELD)
    assert all(file.path == file.path.resolve() for file in found), "a path has no links"
    return [(file.name, file.path.read_text()) for file in found]


LAYOUT = {
    "rows/b.jsonl": "b", "rows/a.jsonl": "a", "rows/a.csv": "c", "rows/empty.jsonl": "", "rows/en/a.jsonl": "d",
    "rows/_SUCCESS": "", "rows/._a.jsonl": "mac",
}  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("rows/a.jsonl", {"rows/a.jsonl": "a"}),
        ("rows/*.jsonl", {"rows/a.jsonl": "a", "rows/b.jsonl": "b", "rows/empty.jsonl": ""}),
        ("rows/?.*", {"rows/a.csv": "c", "rows/a.jsonl": "a", "rows/b.jsonl": "b"}),
        ("rows/**/a.jsonl", {"rows/a.jsonl": "a", "rows/en/a.jsonl": "d"}),
        ("**/a.csv", {"rows/a.csv": "c"}),
    ],
)
@pytest.mark.parametrize("kind", ["pvc", "s3", "hf"])
def test_row_files_of_a_pattern_are_in_the_order_of_their_names(
    kind: str, pattern: str, expected: dict[str, str], volumes: Path, bucket: Path, served: Hub
) -> None:
    for name, content in LAYOUT.items():
        for folder in (volumes / "datasets", bucket):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    served.add("org/name", LAYOUT, "datasets")
    root, secret, shown = {
        "pvc": ("pvc://datasets", None, "datasets"),
        "s3": (f"s3://{bucket.name}", "store", f"s3://{bucket.name}"),
        "hf": ("hf://datasets/org/name", "hub", "hf://datasets/org/name"),
    }[kind]
    found = rows_at(f"{root}/{pattern}", secret)
    assert found == [(f"{shown}/{name}", content) for name, content in expected.items()]


def test_row_files_of_a_hubs_dataset_are_its_split(served: Hub) -> None:
    served.add("org/name", {"train.csv": "a", "test.csv": "b"}, "datasets", gated=True)
    assert rows_at("hf://datasets/org/name", "hub") == [("hf://datasets/org/name/train.csv", "a")]
    assert rows_at("hf://datasets/org/name", "hub", split="test") == [("hf://datasets/org/name/test.csv", "b")]


@pytest.fixture
def config_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLUICE_CONFIG_MAPS", str(tmp_path / "configmaps"))
    write_secret(tmp_path / "configmaps", "house", {"rows.jsonl": ROW})  # the kubelet mounts both alike
    (tmp_path / "configmaps" / "gone").mkdir()
    return tmp_path / "configmaps"


def test_row_file_of_a_config_map(config_maps: Path) -> None:
    assert rows_at("configmap://house/rows.jsonl") == [("configmap://house/rows.jsonl", ROW)]


@pytest.mark.parametrize(
    ("uri", "secret", "reason", "code", "says"),
    [
        ("pvc://datasets/*.csv", None, Reason.DATASET_NOT_FOUND, 65, "means no file. datasets has: rows.jsonl."),
        ("pvc://datasets/none/*", None, Reason.DATASET_NOT_FOUND, 65, "there is no such folder. datasets has: link"),
        ("pvc://datasets/link/*", None, Reason.DATASET_NOT_FOUND, 65, "is a link that leads out of the claim"),
        ("pvc://datasets/*", None, Reason.DATASET_NOT_FOUND, 65, "stray.jsonl is a link that leads out of the claim"),
        ("pvc://datasets/pipe", None, Reason.DATASET_NOT_FOUND, 65, "is a pipe, a socket or a device. Put a file"),
        ("pvc://datasets/pip*", None, Reason.DATASET_NOT_FOUND, 65, "or is a pipe, a socket or a device, and is not"),
        ("pvc://datasets/rows.jsonl", "store", Reason.SOURCE_UNUSABLE, 65, "credentials do not open such an address"),
        ("s3://{bucket}/no*", "store", Reason.DATASET_NOT_FOUND, 65, "means no file with rows. s3://{bucket} has: row"),
        ("s3://{bucket}/rows", "store", Reason.DATASET_NOT_FOUND, 65, "is a folder. It has: a.jsonl, e.jsonl. Name"),
        ("s3://{bucket}/x.csv", "store", Reason.DATASET_NOT_FOUND, 65, "there is no such file. Correct the address"),
        ("s3://{bucket}/rows/e.jsonl", "store", Reason.DATASET_EMPTY, 65, "is an empty file. Write one JSON object"),
        ("s3://{bucket}/rows/a.jsonl", None, Reason.DOWNLOAD_FAILED, 70, "can't be reached from this pod"),
        ("s3://{bucket}/rows/a.jsonl", "none", Reason.ACCESS_REFUSED, 65, "the Secret none is not in this namespace"),
        ("hf://datasets/org/name", None, Reason.DOWNLOAD_FAILED, 70, "can't be reached from this pod"),
        ("hf://datasets/org/none", "hub", Reason.DATASET_NOT_FOUND, 65, "the hub has no such repository"),
        ("configmap://house/a.csv", None, Reason.DATASET_NOT_FOUND, 65, "has no key a.csv; it has: rows.jsonl."),
        ("configmap://gone/a.csv", None, Reason.DATASET_NOT_FOUND, 65, "kubectl create configmap gone --from-file=a."),
        ("configmap://none/a.csv", None, Reason.DATASET_NOT_FOUND, 65, "there is no ConfigMap none in this namespace"),
    ],
)  # fmt: skip
def test_row_files_that_are_not_there(
    uri: str, secret: str | None, reason: Reason, code: int, says: str,
    volumes: Path, bucket: Path, served: Hub, config_maps: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")  # nobody outside is asked
    (volumes / "datasets" / "link").symlink_to("/etc")
    if "pip" in uri:
        os.mkfifo(volumes / "datasets" / "pipe")
    if uri == "pvc://datasets/*":
        (volumes / "datasets" / "stray.jsonl").symlink_to("/etc/passwd")
    files(bucket, rows__a_dot_jsonl=ROW, rows__e_dot_jsonl="")
    with pytest.raises(StageError) as raised:
        rows_at(uri.format(bucket=bucket.name), secret)
    expected = (reason, ExitCode(code), True)
    assert (
        raised.value.reason,
        raised.value.code,
        says.format(bucket=bucket.name) in raised.value.message,
    ) == expected, raised.value.message
    if reason is not Reason.DATASET_EMPTY:
        assert raised.value.message.startswith(FIELD)


def test_gated_dataset_names_its_field_for_credentials(served: Hub, secrets: Path) -> None:
    served.add("org/name", {"train.csv": "a"}, "datasets", gated=True)
    write_secret(secrets, "no-token", {"HF_ENDPOINT": served.endpoint})
    with pytest.raises(
        StageError, match=r"name a Secret with your token in dataset\.sources\[0\]\.credentials: kubectl"
    ):
        rows_at("hf://datasets/org/name", "no-token")


def test_row_files_that_do_not_fit_are_not_fetched(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(bucket, a_dot_jsonl=ROW, b_dot_jsonl=ROW)
    monkeypatch.setenv(DISK_ENV, str(len(ROW) + 1))
    with pytest.raises(StageError, match=r"has room for 0\.0\. Raise resources\.ephemeralStorage"):
        rows_at(f"s3://{bucket.name}/*", "store")


def test_small_file_is_read_from_everywhere(volumes: Path, bucket: Path, config_maps: Path) -> None:
    for folder in (volumes / "models", bucket, config_maps / "house"):
        (folder / "chat.jinja").write_text("template")
    opens = Credentials(secret="store")
    for uri in ("pvc://models/chat.jinja", f"s3://{bucket.name}/chat.jinja", "configmap://house/chat.jinja"):
        read = small_file(uri, "model.chatTemplate.uri", opens, "model.credentials", Reason.MODEL_NOT_FOUND)
        assert read == b"template"
    (volumes / "models" / "chat.jinja").write_bytes(b"x" * (MAX_SMALL_BYTES + 1))
    with pytest.raises(StageError, match="has more than 1,048,576 bytes"):
        small_file("pvc://models/chat.jinja", "model.chatTemplate.uri", None, "", Reason.MODEL_NOT_FOUND)


@pytest.mark.parametrize("kind", ["s3", "hf"])
def test_model_from_afar_is_the_same_model(kind: str, tiny_model: Path, bucket: Path, served: Hub) -> None:
    contents = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    served.add("org/tiny", contents)
    for name, content in contents.items():
        (bucket / name).write_bytes(content)
    uri, secret = {"s3": (f"s3://{bucket.name}", "store"), "hf": ("hf://org/tiny", "hub")}[kind]
    opens = Credentials(secret=secret)
    small = base_model.locate(uri, credentials=opens, weights=False)
    whole = base_model.locate(uri, small.revision, opens)
    assert small.fingerprint == whole.fingerprint == model_fingerprint(tiny_model)
    assert small.tokenizer_digest == whole.tokenizer_digest
    assert [path.name for path in whole.folder.glob("*.safetensors")] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{", "config.json is not JSON: Expecting property name"),
        ("[" * 100_000, "config.json is not JSON: maximum recursion depth exceeded"),
        ("\x00", "config.json is not JSON: Expecting value"),
        ("[]", "config.json is not a JSON object"),
        ('{"text_config": 3}', "its config.json is damaged: text_config is no object"),
        ('{"vocab_size": "many"}', "its config.json is damaged: vocab_size is no number"),
    ],
)
@pytest.mark.parametrize("kind", ["s3", "hf", "pvc"])
def test_model_from_anywhere_with_a_broken_config_is_refused(
    kind: str, config: str, says: str, tiny_model: Path, bucket: Path, served: Hub, volumes: Path
) -> None:
    contents = {path.name: path.read_bytes() for path in tiny_model.iterdir()} | {"config.json": config.encode()}
    served.add("org/tiny", contents)
    (volumes / "models" / "broken").mkdir()
    for name, content in contents.items():
        (bucket / name).write_bytes(content)
        (volumes / "models" / "broken" / name).write_bytes(content)
    uri, secret = {
        "s3": (f"s3://{bucket.name}", "store"),
        "hf": ("hf://org/tiny", "hub"),
        "pvc": ("pvc://models/broken", None),
    }[kind]
    with pytest.raises(StageError) as raised:
        base_model.locate(uri, credentials=Credentials(secret=secret) if secret else None, weights=False)
    assert (raised.value.reason, raised.value.code) == (Reason.MODEL_INVALID, ExitCode.BAD_INPUT)
    assert raised.value.message.startswith(f"model.uri {uri} is no model that can be trained: {says}")
    assert "Restore" in raised.value.message


def test_model_at_an_address_that_is_a_folder_above_says_what_is_there(bucket: Path) -> None:
    files(bucket, models__tiny__config_dot_json="{}")
    with pytest.raises(
        StageError, match=r"has no config\.json\. It has: tiny/config\.json\. Correct the address"
    ) as raised:
        base_model.locate(f"s3://{bucket.name}/models", credentials=Credentials(secret="store"))
    assert (raised.value.reason, raised.value.code) == (Reason.MODEL_NOT_FOUND, ExitCode.BAD_INPUT)


def test_job_is_prepared_without_any_volume_to_read_from(job: Job, tiny_model: Path, bucket: Path, served: Hub) -> None:
    write_rows(bucket / "rows.jsonl", ROWS)
    served.add("org/tiny", {path.name: path.read_bytes() for path in tiny_model.iterdir()}, gated=True)
    local = job.prepare()
    remote = Job(
        job.volumes,
        name="remote",
        spec=(
            ("model", {"uri": "hf://org/tiny", "credentials": {"secret": "hub"}}),
            ("dataset", {"uri": f"s3://{bucket.name}/*.jsonl", "credentials": {"secret": "store"}}),
        ),
    )
    assert remote.prepare() == local
    assert "model.safetensors" in served.downloaded, "samples of it"
    assert remote.prepared().manifest.base_model_fingerprint == model_fingerprint(tiny_model)
