"""The agent's own port: /livez, /readyz and /metrics."""

import asyncio

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from sluice_server.agent.metrics import REGISTRY
from sluice_server.agent.slot import Slot

_CONNECT_SECONDS = 1.0


async def _listens(port: int) -> bool:
    """Whether vLLM takes connections.

    It may have ended since the agent last asked, and the kubelet counts a container as ready as soon as it runs.
    """
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), _CONNECT_SECONDS)
    except TimeoutError:
        return True  # A vLLM that is too busy to accept still counts as serving.
    except OSError:
        return False
    writer.close()
    return True


async def listen(port: int, slot: Slot, vllm_port: int) -> web.AppRunner:
    """Serve the probes; the caller cleans the runner up."""

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        if slot.ready and await _listens(vllm_port):
            return web.Response(text="ok\n")
        view = slot.view()
        why = "The slot drains." if slot.must_drain else view.message or "vLLM does not serve."
        return web.Response(status=503, text=f"{why}\n")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, None, port).start()
    return runner
