"""A credential is found nowhere: in no log, outcome, report, file or error, and not in the environment."""

import io
import json
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dev.cluster.ports import free_port
from sluice_api.stages import ExitCode, TrainResult
from sluice_files import hub as hub_module
from sluice_files import stores
from sluice_trainer.data import remote as https
from sluice_trainer.errors import StageError
from sluice_trainer.export.card import model_card
from tests.hub import STRANGER, TOKEN, Hub, hub
from tests.object_store import KEY, SECRET, ObjectStore, write_secret
from tests.unit.trainer import forked
from tests.unit.trainer.jobs import ROWS, Job, write_rows

CANARY = "cAnArY0123456789"
CANARIES = (CANARY, TOKEN, STRANGER, SECRET, KEY)
NOWHERE = f"http://127.0.0.1:{free_port('127.0.0.1')}"
OF_STORE: dict[str, dict[str, str]] = {
    "right": {},
    "wrong key": {"AWS_SECRET_ACCESS_KEY": CANARY},
    "unknown id": {"AWS_ACCESS_KEY_ID": CANARY},
    "session is over": {"AWS_SESSION_TOKEN": CANARY},
    "nobody listens": {"AWS_ENDPOINT_URL": NOWHERE},
    "no such name": {"AWS_ENDPOINT_URL": "https://store.invalid"},
    "in the endpoint": {"AWS_ENDPOINT_URL": f"http://me:{CANARY}@127.0.0.1"},
    "not TLS": {"AWS_ENDPOINT_URL": NOWHERE.replace("http:", "https:")},
    "two lines": {"AWS_SECRET_ACCESS_KEY": f"{CANARY}\n{CANARY}"},
}
OF_HUB: dict[str, dict[str, str]] = {
    "right": {},
    "no access": {"HF_TOKEN": STRANGER},
    "wrong token": {"HF_TOKEN": f"hf_{CANARY}"},
    "two lines": {"HF_TOKEN": f"hf_{CANARY}\n{CANARY}"},
    "nobody listens": {"HF_ENDPOINT": NOWHERE},
    "in the endpoint": {"HF_ENDPOINT": f"http://me:{CANARY}@127.0.0.1"},
}
RUNS = [*(("right", store) for store in OF_STORE), *((of_hub, "right") for of_hub in OF_HUB if of_hub != "right")]


@pytest.fixture
def served(tmp_path: Path, tiny_model: Path) -> Iterator[Hub]:
    with hub(tmp_path / "hub") as stand_in:
        stand_in.add("org/gated", {path.name: path.read_bytes() for path in tiny_model.iterdir()}, gated=True)
        yield stand_in


@pytest.fixture
def remote(job: Job, served: Hub, s3: ObjectStore, secrets: Path, tmp_path: Path, request: Any) -> Job:
    """A job whose model is on the hub and whose rows are in an object store."""
    of_hub, of_store = request.param
    write_secret(secrets, "hub", {**served.secret, **OF_HUB[of_hub]})
    write_secret(secrets, "store", {**s3.secret, **OF_STORE[of_store]})
    write_rows(s3.bucket("canary") / "rows.jsonl", ROWS)
    model = {"uri": "hf://org/gated", "credentials": {"secret": "hub"}}
    dataset = {"uri": "s3://canary/rows.jsonl", "credentials": {"secret": "store"}}
    return Job(job.volumes, name="remote", spec=(("model", model), ("dataset", dataset)))


def leaks(*texts: str) -> list[str]:
    return [canary for canary in CANARIES for text in texts if canary in text]


def written_below(folder: Path) -> list[str]:
    return [path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("remote", RUNS, indirect=True, ids=" and ".join)
def test_credential_is_in_no_output(
    remote: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: Any
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(hub_module, "_RETRIES", 0)
    monkeypatch.setitem(stores._RETRIES, "max_retries", 0)
    caplog.set_level("DEBUG")
    said = ""
    try:
        remote.prepare()
    except StageError as error:
        said = "".join(traceback.format_exception(error)) + repr(error.__context__)
    assert leaks(said, *capfd.readouterr(), caplog.text, *written_below(tmp_path / "scratch")) == []
    assert leaks(*written_below(remote.work), *os.environ.values()) == []
    assert (said == "") is (remote.work / "prepared" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("remote", "code"),
    [(("right", "right"), ExitCode.DONE), (("wrong token", "right"), ExitCode.BAD_INPUT)],
    indirect=["remote"],
    ids=["done", "refused"],
)
def test_credential_is_in_no_pods_log_or_outcome(
    remote: Job, code: ExitCode, parent: forked.Parent, secrets: Path, tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    of_pod = f"SLUICE_CREDENTIALS={str(secrets)!r}, TMPDIR={str(tmp_path / 'own')!r}, HF_HUB_OFFLINE='0'"
    online = "import huggingface_hub.constants as hub; hub.HF_HUB_OFFLINE = False"  # which it was imported with
    stage = parent.start(remote, "Prepare", before=f"import os; os.environ.update({of_pod}); {online}")
    assert stage.wait() == code, stage.log.read_text()
    assert leaks(stage.log.read_text(), stage.outcome_file.read_text(), *written_below(remote.work)) == []


SIGNED = f"https://host.example/rows.jsonl?X-Signature={CANARY}#{CANARY}"
UNUSUAL = f"https://host.example/r\u00f6ws.jsonl?X-Signature={CANARY}\x01\u00f6"
ANSWERS: dict[str, tuple[str, bytes]] = {
    "rows": ("200 OK", b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)),
    "bad row": ("200 OK", b'{"messages": 1}\n' * 9),
    "no rows": ("200 OK", b""),
    "page": ("200 OK", b"<!DOCTYPE html><html><body>Sign in</body></html>"),
    "cut off": ("200 OK", b"\x1f\x8b\x08\x00"),
    "forbidden": ("403 Forbidden", b""),
    "missing": ("404 Not Found", b""),
    "busy": ("503 Unavailable", b""),
    "to nowhere": (f"302 Found\r\nLocation: https://[::1/?{CANARY}", b""),
    "to http": (f"302 Found\r\nLocation: http://me:{CANARY}@host.example/?{CANARY}", b""),
    "to itself": (f"302 Found\r\nLocation: https://host.example/?{CANARY}", b""),
}
DATASETS: dict[str, dict[str, Any]] = {
    "signed": {"uri": SIGNED},
    "unusual": {"uri": UNUSUAL},
    "several": {"sources": [{"uri": SIGNED}, {"uri": UNUSUAL}]},
    "with a password": {"uri": f"https://me:{CANARY}@host.example/rows.jsonl"},
    "with credentials": {"uri": SIGNED, "credentials": {"secret": "any"}},
}
REFUSED = ("with a password", "with credentials")


class Answer:
    """A connection to a host that answers always the same."""

    def __init__(self, status: str, body: bytes) -> None:
        self._text = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    def sendall(self, request: bytes) -> None:
        assert request.startswith(b"GET /")

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._text)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_what_opens_an_address_is_in_no_output(
    dataset: str, answer: str, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(https, "_address", lambda _host, _port, _name: "192.0.2.1")
    monkeypatch.setattr(https._Connection, "connect", lambda self: setattr(self, "sock", Answer(*ANSWERS[answer])))
    signed = Job(job.volumes, name="signed", spec=(("dataset", DATASETS[dataset]),))
    try:
        signed.prepare()
    except StageError as error:
        assert answer != "rows" or dataset in REFUSED
        said = "".join(traceback.format_exception(error)) + repr(error.__context__)
    else:
        assert answer == "rows"
        assert dataset not in REFUSED
        said = model_card(signed.stage("Export"), signed.prepared().manifest, TrainResult(step=1, total_steps=1))
        assert "https://host.example/r" in said
    assert leaks(said, *capfd.readouterr(), *written_below(signed.work)) == []
