"""The agent's reports by TLS."""

from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from sluice_api.reports import ENGINE_REPORTS_PATH
from sluice_operator.certificates.authority import renewed
from sluice_server.agent.reporting import Reporter
from sluice_server.agent.slot import View
from tests.unit.certificates.serving import context_of

_VIEW = View(serving=True, draining=False, in_flight=0, quiet_seconds=0, adapters=(), message="")


@pytest.mark.parametrize(("trusts_ours", "arrives"), [(True, True), (False, False)])
async def test_report_needs_a_certificate_of_the_trust_file(tmp_path: Path, trusts_ours: bool, arrives: bool) -> None:
    ours, theirs = (renewed(None, ("127.0.0.1",), datetime.now(UTC)) for _ in range(2))
    (tmp_path / "token").write_text("a.b.c")
    (tmp_path / "ca.crt").write_bytes((ours if trusts_ours else theirs).trusted)
    taken = []

    async def take(request: web.Request) -> web.Response:
        taken.append(request.headers["Authorization"])
        return web.Response(status=202)

    app = web.Application()
    app.router.add_post(ENGINE_REPORTS_PATH, take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context_of(ours, tmp_path))
    await site.start()
    port = runner.addresses[0][1]
    try:
        reporter = Reporter(f"https://127.0.0.1:{port}", tmp_path / "token", tmp_path / "ca.crt")
        async with aiohttp.ClientSession() as session:
            assert await reporter._post(session, _VIEW) is arrives
    finally:
        await runner.cleanup()
    assert taken == ["Bearer a.b.c"] * arrives
