"""A process that makes claims while it leads: `python3 -m tests.integration.claiming_process NAMESPACE NAME`."""

import asyncio
import sys

from sluice_operator.cluster.client import Api, connect
from sluice_operator.cluster.cluster import Cluster
from sluice_operator.cluster.errors import NotLeading
from sluice_operator.cluster.lease import Lease
from sluice_operator.observe.store import Store
from tests.integration.test_writes import stage_job

SECONDS = 5


async def main(namespace: str, name: str) -> None:
    """Say what happens, one line each."""
    client = await connect()
    api = Api(client)
    lease = Lease(api, namespace, name, SECONDS)
    cluster = Cluster(api, Store(), lease, name)
    made = 0

    async def claim_on_and_on() -> None:
        nonlocal made
        say(f"leading {cluster.term}")
        try:
            while True:
                claim = stage_job(namespace, f"{name}-{made}")
                claim["metadata"]["annotations"] = {"test/term": str(cluster.term)}
                await cluster.create(claim)
                say(f"made {made}")
                made += 1
        except NotLeading:
            say("refused")
        finally:
            say("stopped")

    await lease.run(claim_on_and_on)


def say(line: str) -> None:
    """To whoever has started us."""
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
