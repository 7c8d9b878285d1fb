"""Why a job is where it is, from a fresh look at the cluster: `python3 -m sluice_operator.explain NAMESPACE/JOB`.

It reads, and writes nothing. Requests in flight are known to the leader alone: of two replicas that differ in nothing
else, the leader may lend the other one.
"""

import argparse
import asyncio
import sys
from datetime import UTC, datetime

from sluice_operator.cluster.client import Api, connect
from sluice_operator.cluster.lists import look_for_dra, refresh_all
from sluice_operator.observe.fence import fenced
from sluice_operator.observe.store import Store
from sluice_operator.observe.world import job_key, key_of
from sluice_operator.settings import Limits
from sluice_operator.status.trace import trace


async def explain(namespace: str, name: str) -> list[str]:
    """The trace of one job.

    Raises:
        LookupError: there is no such job.
    """
    client = await connect()
    try:
        api, store = Api(client), Store()
        await look_for_dra(api, store)
        await refresh_all(api, store)
    finally:
        await client.close()
    world = store.world()
    job = world.jobs.get(job_key(namespace, name))
    if job is None:
        raise LookupError(f"there is no FineTuneJob {name} in namespace {namespace}")
    found = fenced(
        world, key_of(job), lambda seen: list(trace(seen, job, datetime.now(UTC), Limits.from_environment()))
    )
    lines = [f"set aside: {aside.key}: {aside.why}" for aside in found.aside]
    return [*(found.decision or [f"{job.metadata.full_name}: nothing can be decided for it"]), *lines]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python3 -m sluice_operator.explain", description=__doc__)
    parser.add_argument("job", metavar="NAMESPACE/JOB")
    namespace, slash, name = parser.parse_args().job.partition("/")
    if not slash:
        parser.error("write NAMESPACE/JOB")
    try:
        lines = asyncio.run(explain(namespace, name))
    except LookupError as missing:
        sys.exit(str(missing))
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
