"""Reports the slot to the operator: at once when something changes, and every few seconds."""

import asyncio
import logging
import ssl
import time
from contextlib import suppress
from pathlib import Path

import aiohttp

from sluice_api.reports import ENGINE_REPORTS_PATH, EngineReport, LoadedState
from sluice_server.agent import metrics
from sluice_server.agent.events import is_set_within
from sluice_server.agent.slot import Slot, View

log = logging.getLogger(__name__)

_EVERY_SECONDS = 3.0
_DRAINING_EVERY_SECONDS = 0.5
_COALESCE_SECONDS = 0.1
_TIMEOUT = aiohttp.ClientTimeout(total=5)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 2.0


class Reporter:
    """Posts EngineReports. Nothing in the slot waits for a post."""

    def __init__(self, url: str, token_file: Path, trust_file: Path) -> None:
        self._url = url.rstrip("/") + ENGINE_REPORTS_PATH
        self._trust_file = trust_file
        self._token_file = token_file
        self._changed = asyncio.Event()
        self._sequence = 0

    def report_soon(self) -> None:
        """Post a report at once, because something has changed."""
        self._changed.set()

    async def run(self, slot: Slot) -> None:
        """Report until cancelled, and once more then."""
        # A new connection for each post: a kept one would go to the operator replica that led before.
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True), timeout=_TIMEOUT) as session:
            pause = _FIRST_PAUSE
            try:
                while True:
                    self._changed.clear()
                    if await self._post(session, slot.view()):
                        pause = _FIRST_PAUSE
                        await self._wait(_DRAINING_EVERY_SECONDS if slot.is_awaited else _EVERY_SECONDS)
                    else:
                        await asyncio.sleep(pause)
                        pause = min(2 * pause, _LONGEST_PAUSE)
            except asyncio.CancelledError:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._post(session, slot.view()), 1.0)
                raise

    async def _wait(self, seconds: float) -> None:
        """Wait for the next report's time, or for a change and those that come with it."""
        if await is_set_within(self._changed, seconds):
            await asyncio.sleep(_COALESCE_SECONDS)

    async def _post(self, session: aiohttp.ClientSession, view: View) -> bool:
        """Post one report; return whether the operator has taken it."""
        _set_metrics(view)
        report = self._report(view)
        try:
            token = self._token_file.read_text().strip()
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            async with session.post(self._url, data=report.to_json(), headers=headers, ssl=self._trust()) as answer:
                metrics.REPORTS.labels(str(answer.status)).inc()
                if answer.status < 300:
                    return True
                text = (await answer.text())[:200]
                if answer.status != 503:
                    log.warning("the operator answered a report with %s: %s", answer.status, text)
                if answer.status == 429:
                    await asyncio.sleep(_retry_after(answer.headers.get("Retry-After", "")))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            metrics.REPORTS.labels("unreachable").inc()
            log.warning("a report did not reach the operator: %r", error)
        return False

    def _trust(self) -> ssl.SSLContext | bool:
        """The CA that must have signed the operator's certificate, read each time; without a file the system's CAs."""
        if not self._url.startswith("https:") or not self._trust_file.exists():
            return True
        return ssl.create_default_context(cafile=self._trust_file)

    def _report(self, view: View) -> EngineReport:
        # Milliseconds of the clock: the number has to grow over a restart of the agent too.
        self._sequence = max(self._sequence + 1, time.time_ns() // 1_000_000)
        return EngineReport(
            sequence=self._sequence,
            serving=view.serving,
            draining=view.draining,
            asleep=view.asleep,
            in_flight=view.in_flight,
            quiet_seconds=round(view.quiet_seconds, 3),
            adapters=view.adapters[:256],
            message=view.message,
        )


def _retry_after(value: str) -> float:
    return min(float(value), _LONGEST_PAUSE) if value.isdigit() else _FIRST_PAUSE


def _set_metrics(view: View) -> None:
    metrics.IN_FLIGHT.count = view.in_flight if view.serving else None
    metrics.SERVING.set(view.serving)
    metrics.DRAINING.set(view.draining)
    for state in LoadedState:
        metrics.ADAPTERS.labels(state).set(sum(report.state == state for report in view.adapters))
