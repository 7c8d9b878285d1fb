"""Reports to the operator: how far training is, at most once a second, without slowing training down."""

import http.client
import ssl
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sluice_api.pods import TOKEN_FILE, TRUST_FILE
from sluice_api.reports import TRAINING_REPORTS_PATH, Activity, TrainingReport
from sluice_trainer import logs

INTERVAL_SECONDS = 1.0
"""Seconds between two reports that only differ in their numbers."""
TIMEOUT_SECONDS = 2.0
"""Seconds that one request may take."""
MAX_PAUSE_SECONDS = 10.0
"""Between two tries to reach the operator."""

_BACKLOG_REPORTS = 16
"""Reports that wait behind a slow one; beyond that, the oldest are dropped."""
_REJECTED_STATUSES = (401, 403, 409)
_RETRIED_STATUSES = (429, 503)


class Reporter:
    """Posts the newest state from a thread of its own.

    The first report, the last, a new activity and a new checkpoint always go out; between them numbers are
    coalesced. When the operator can't be reached, the newest report is kept and sent again with growing pauses.
    """

    def __init__(
        self,
        attempt: int,
        url: str | None,
        token_file: Path = Path(TOKEN_FILE),
        trust_file: Path = Path(TRUST_FILE),
    ) -> None:
        self._newest = TrainingReport(attempt=attempt, sequence=1, activity=Activity.STARTING)
        self._url = url
        self._token_file = token_file
        self._trust_file = trust_file
        self._sequence = 0
        self._loss_sum, self._loss_count = 0.0, 0
        self._queue: deque[TrainingReport] = deque(maxlen=_BACKLOG_REPORTS)
        self._changed = False
        self._closing = False
        self._condition = threading.Condition()
        self._not_before = 0.0
        self._numbers_not_before = 0.0
        self._refused: set[int] = set()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    @property
    def activity(self) -> Activity:
        """What the trainer does now."""
        return self._newest.activity

    def start(self) -> None:
        """Send the first report."""
        self._queue.append(self._next_report())
        self._thread.start()

    def update(self, *, loss_sum: float = 0.0, loss_count: int = 0, **changes: Any) -> None:
        """Change fields of the report. Losses are summed until a report has their mean."""
        with self._condition:
            before = self._newest
            self._newest = before.model_copy(update=changes)
            self._loss_sum += loss_sum
            self._loss_count += loss_count
            self._changed = True
            if (before.activity, before.checkpoint_step) != (self._newest.activity, self._newest.checkpoint_step):
                self._queue.append(self._next_report())
            self._condition.notify()

    def close(self, seconds: float = TIMEOUT_SECONDS, **changes: Any) -> None:
        """Send the last report, and wait at most so many seconds until it has arrived."""
        with self._condition:
            if not self._closing:
                self._newest = self._newest.model_copy(update=changes)
                self._queue.append(self._next_report())
                self._closing = True
                self._not_before = 0.0
            self._condition.notify()
        self._thread.join(seconds)

    def _next_report(self) -> TrainingReport:
        """Make a report of the newest state. The caller holds the condition, or no thread runs yet."""
        self._sequence += 1
        changes: dict[str, Any] = {"sequence": self._sequence}
        if self._loss_count:
            changes["loss"] = self._loss_sum / self._loss_count
            self._loss_sum, self._loss_count = 0.0, 0
        self._newest = self._newest.model_copy(update=changes)
        self._changed = False
        logs.info("report", **self._newest.model_dump(mode="json", by_alias=True, exclude_none=True))
        return self._newest

    def _run(self) -> None:
        pause = INTERVAL_SECONDS / 2
        while (report := self._wait_for_report()) is not None:
            delivered = self._url is None or self._post(self._url, report)
            with self._condition:
                self._numbers_not_before = time.monotonic() + INTERVAL_SECONDS
                if delivered:
                    pause = INTERVAL_SECONDS / 2
                    continue
                pause = min(pause * 2, MAX_PAUSE_SECONDS)
                self._not_before = time.monotonic() + pause
                if not self._queue and not self._changed:
                    self._queue.append(report)
                while len(self._queue) > 1:
                    self._queue.popleft()

    def _wait_for_report(self) -> TrainingReport | None:
        """Wait for a report that may go out now; None when the last one has."""
        with self._condition:
            while True:
                now = time.monotonic()
                wait: float | None = None
                if self._queue:
                    wait = self._not_before - now
                elif self._closing:
                    return None
                elif self._changed:
                    wait = max(self._not_before, self._numbers_not_before) - now
                if wait is not None and wait <= 0:
                    return self._queue.popleft() if self._queue else self._next_report()
                self._condition.wait(wait)

    def _post(self, url: str, report: TrainingReport) -> bool:
        """Post one report; False when it is worth another try."""
        try:
            status = self._answer(url, report)
        except (OSError, http.client.HTTPException) as error:
            logs.warning("report not delivered", sequence=report.sequence, error=f"{type(error).__name__}: {error}")
            return False
        if status in _REJECTED_STATUSES and status not in self._refused:
            self._refused.add(status)
            logs.warning("report refused; this is logged once", status=status, sequence=report.sequence)
        elif status == 400:
            logs.warning("report malformed", sequence=report.sequence)
        return not (status in _RETRIED_STATUSES or status >= 500)

    def _answer(self, url: str, report: TrainingReport) -> int:
        parts = urlsplit(url)
        connection = self._connection(parts.scheme, parts.hostname or "", parts.port)
        headers = {"Content-Type": "application/json"}
        if self._token_file.exists():
            headers["Authorization"] = f"Bearer {self._token_file.read_text().strip()}"
        try:
            path = parts.path.rstrip("/") + TRAINING_REPORTS_PATH
            connection.request("POST", path, report.to_json(), headers)
            return connection.getresponse().status
        finally:
            connection.close()

    def _connection(self, scheme: str, host: str, port: int | None) -> http.client.HTTPConnection:
        """Make a new connection for each report: certificate authority and leader may change in between."""
        if scheme != "https":
            return http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
        trust = str(self._trust_file) if self._trust_file.exists() else None
        return http.client.HTTPSConnection(
            host, port, timeout=TIMEOUT_SECONDS, context=ssl.create_default_context(cafile=trust)
        )


class SilentReporter(Reporter):
    """The reporter of a process that does not lead its group: only the leader reports."""

    def start(self) -> None:
        """Send nothing."""

    def update(self, *, loss_sum: float = 0.0, loss_count: int = 0, **changes: Any) -> None:
        """Send nothing."""

    def close(self, seconds: float = TIMEOUT_SECONDS, **changes: Any) -> None:
        """Send nothing."""
