"""The container `agent`: makes its parts and runs them."""

import asyncio
import logging
import os
import secrets
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from sluice_api import pods
from sluice_api.adapter import Adapter
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.slots import SlotSpec
from sluice_server.agent.adapter_cache import AdapterCache
from sluice_server.agent.attempts import Attempts
from sluice_server.agent.informer import Informer
from sluice_server.agent.probes import listen
from sluice_server.agent.reconcile import Reconciler
from sluice_server.agent.reporting import Reporter
from sluice_server.agent.slot import Slot
from sluice_server.agent.vllm_client import VLLMClient
from sluice_server.agent.wake_check import WakeCheck
from sluice_server.paths import SlotPaths

if TYPE_CHECKING:
    from kubernetes.aio.client import CustomObjectsApi


def run() -> None:
    """Run the agent until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(_run(SlotSpec.model_validate_json(pods.told(pods.SLOT_ENV)), SlotPaths.here()))


async def _run(spec: SlotSpec, paths: SlotPaths) -> None:
    agent = asyncio.create_task(serve(spec, paths, os.environ[pods.REPORT_URL_ENV], _api_server))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, agent.cancel)
    with suppress(asyncio.CancelledError):
        await agent


async def serve(
    spec: SlotSpec, paths: SlotPaths, report_url: str, api_server: Callable[[], "CustomObjectsApi"]
) -> None:
    """Run the agent of a slot until cancelled."""
    secret = _secret(paths.secret_file)
    reporter = Reporter(report_url, paths.at(pods.TOKEN_FILE), paths.at(pods.TRUST_FILE))
    slot = Slot(reporter.report_soon)
    # vLLM's container waits for the secret and for this port, so everything slow comes after them.
    probes = await listen(paths.agent_port, slot, paths.serve_port)
    try:
        await asyncio.to_thread(import_module, "kubernetes.aio")  # More than a second.
        api = api_server()
        async with (
            api.api_client,
            VLLMClient(
                paths.serve_port, secret, spec.engine, embeds=spec.spec.task == "Embed", sleep_level=spec.sleep_level
            ) as vllm,
            asyncio.TaskGroup() as tasks,
        ):
            changed = asyncio.Event()
            engines = Informer(api, InferenceEngine, spec.namespace, changed.set, only=spec.engine)
            adapters = Informer(api, Adapter, spec.namespace, changed.set)
            reconciler = Reconciler(
                spec=spec,
                pod=socket.gethostname(),  # A Deployment's pod has its own name as its host's.
                vllm=vllm,
                cache=AdapterCache(spec, paths),
                engines=engines,
                adapters=adapters,
                slot=slot,
                attempts=Attempts(paths.scratch / "attempts.json"),
                wake_check=WakeCheck(paths.scratch / "wake_check.json"),
                changed=changed,
            )
            for task in (engines.run(), adapters.run(), reconciler.run(), reporter.run(slot)):
                tasks.create_task(task)
    finally:
        await probes.cleanup()


def _api_server() -> "CustomObjectsApi":
    from kubernetes.aio import client, config

    configuration = client.Configuration()
    config.load_incluster_config(client_configuration=configuration)
    return client.CustomObjectsApi(client.ApiClient(configuration))


def _secret(path: Path) -> str:
    """This pod's secret. The agent's first start makes it, and it stays over restarts of either container."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(secrets.token_hex(32))
        new.rename(path)
    return path.read_text().strip()
