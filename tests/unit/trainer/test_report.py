"""Reports: what must arrive does, in order, and an operator that doesn't answer costs training nothing."""

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from sluice_api.reports import Activity, TrainingReport
from sluice_operator.certificates.authority import renewed
from sluice_trainer import report
from sluice_trainer.report import Reporter
from tests.unit.certificates.serving import context_of
from tests.unit.trainer.jobs import REPOSITORY, Job


class Operator:
    """Takes reports and answers as told: statuses in order, the last one for ever."""

    url = ""

    def __init__(self) -> None:
        self.reports: list[TrainingReport] = []
        self.tokens: list[str | None] = []
        self.statuses = [202]
        self.arrived = threading.Condition()

    def take(self, body: bytes, token: str | None) -> int:
        with self.arrived:
            self.reports.append(TrainingReport.model_validate(json.loads(body)))
            self.tokens.append(token)
            self.arrived.notify_all()
            return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]

    def wait_for(self, count: int) -> list[TrainingReport]:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.reports) >= count, timeout=10), self.reports
            return list(self.reports)


@pytest.fixture
def operator() -> Iterator[Operator]:
    operator = Operator()
    with serving(operator) as url:
        operator.url = url
        yield operator


@contextmanager
def serving(operator: Operator, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/training-reports"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(operator.take(body, self.headers["Authorization"]))
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    server.shutdown()


def reporter(operator: Operator, token_file: Path = Path("/nowhere")) -> Reporter:
    return running(Reporter(3, operator.url, token_file))


def running(reporter: Reporter) -> Reporter:
    reporter.start()
    return reporter


def test_report_coalesces_numbers_but_no_new_activity_or_checkpoint(operator: Operator) -> None:
    posted = reporter(operator)
    operator.wait_for(1)
    posted.update(activity=Activity.TRAINING)
    for step in range(1, 101):
        posted.update(step=step, loss_sum=float(step), loss_count=1)
        if step in (40, 80):
            posted.update(checkpoint_step=step)
    posted.close(activity=Activity.FINISHED)
    seen = [(r.activity, r.step, r.checkpoint_step, r.loss) for r in operator.wait_for(5)]
    assert seen == [
        (Activity.STARTING, 0, None, None),
        (Activity.TRAINING, 0, None, None),
        (Activity.TRAINING, 40, 40, 20.5),
        (Activity.TRAINING, 80, 80, 60.5),
        (Activity.FINISHED, 100, 80, 90.5),
    ]
    assert [(r.attempt, r.sequence) for r in operator.reports] == [(3, n) for n in range(1, 6)]


def test_report_of_numbers_goes_out_once_an_interval(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "INTERVAL_SECONDS", 0.2)
    posted = reporter(operator)
    operator.wait_for(1)
    began, steps = time.monotonic(), count(1)
    while len(operator.reports) < 4:
        posted.update(step=next(steps))
        time.sleep(0.001)
    assert time.monotonic() - began > 3 * report.INTERVAL_SECONDS
    last = next(steps)
    posted.close(step=last)
    assert operator.wait_for(5)[-1].step == last


def test_report_reads_the_token_for_each_request(operator: Operator, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("first\n")
    posted = reporter(operator, token_file)
    operator.wait_for(1)
    token_file.write_text("second\n")
    posted.close()
    assert operator.tokens == ["Bearer first", "Bearer second"]


def test_report_to_an_operator_that_never_answers_does_not_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of a thousand reports would wait for longer than a test may take; and so would the last."""
    monkeypatch.setattr(report, "TIMEOUT_SECONDS", 1000)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        posted = running(Reporter(1, f"http://127.0.0.1:{silent.getsockname()[1]}"))
        for step in range(1000):
            posted.update(step=step, checkpoint_step=step)
        posted.close(seconds=0.2)


def test_report_is_kept_while_no_operator_leads(operator: Operator) -> None:
    operator.statuses = [503, 503, 202]
    posted = reporter(operator)
    posted.update(checkpoint_step=1)
    posted.update(checkpoint_step=2)
    reports = operator.wait_for(3)
    assert [r.checkpoint_step for r in reports][-1] == 2
    assert [r.sequence for r in reports] == sorted(r.sequence for r in reports)
    posted.close()


def test_report_at_the_end_is_sent_again_until_it_arrives(operator: Operator) -> None:
    posted = reporter(operator)
    operator.wait_for(1)
    operator.statuses = [503, 202]
    posted.close(seconds=5, activity=Activity.FINISHED)
    assert [r.activity for r in operator.reports] == [Activity.STARTING, Activity.FINISHED, Activity.FINISHED]


@pytest.mark.parametrize("status", [401, 403, 409])
def test_report_that_is_refused_is_dropped_and_logged_once(
    operator: Operator, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    operator.statuses = [status]
    posted = reporter(operator)
    posted.update(checkpoint_step=1)
    posted.update(checkpoint_step=2)
    posted.close()
    assert [r.sequence for r in operator.reports] == [1, 2, 3, 4]
    assert capsys.readouterr().out.count('"event": "report refused') == 1


HEAVY = ("torch", "transformers", "peft", "httpx", "numpy")
UNTIL_THE_FIRST_REPORT = f"""
import os, runpy, sys
from sluice_trainer.report import Reporter

def start(self):
    print([name for name in {HEAVY} if name in sys.modules], flush=True)
    os._exit(0)

Reporter.start = start
runpy.run_module("sluice_trainer", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("stage", ["Prepare", "Train", "Export"])
def test_report_goes_out_before_heavy_imports(volumes: Path, stage: str) -> None:
    started = subprocess.run(
        [sys.executable, "-c", UNTIL_THE_FIRST_REPORT, stage.lower()],
        env={
            **os.environ,
            "PYTHONPATH": f"{REPOSITORY}/operator:{REPOSITORY}/trainer_image",
            "SLUICE_STAGE": Job(volumes).stage(stage).to_json(),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert started.stdout == "[]\n", started.stderr


def test_report_goes_only_to_a_server_that_the_trust_file_certifies(operator: Operator, tmp_path: Path) -> None:
    """The file is read anew for each post: the authority may have changed, and the kubelet has brought the new one."""
    ours, theirs = (renewed(None, ("127.0.0.1",), datetime.now(UTC)) for _ in range(2))
    trust = tmp_path / "ca.crt"
    trust.write_bytes(theirs.trusted)
    with serving(operator, tls=context_of(ours, tmp_path)) as url:
        reporter = Reporter(1, url, tmp_path / "token", trust)
        assert not reporter._post(url, TrainingReport(attempt=1, sequence=1, activity=Activity.TRAINING))
        assert operator.reports == []
        trust.write_bytes(ours.trusted)
        assert reporter._post(url, TrainingReport(attempt=1, sequence=1, activity=Activity.TRAINING))
    assert len(operator.reports) == 1
