"""What each worker of pytest has for itself, so that journeys run side by side: namespaces, a pool, and fake GPUs."""

import os

from tests.e2e.kubectl import Object

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "alone")
RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID", "")
"""The same for all workers of one call of pytest; empty where there is one process only."""

TEAM, NEIGHBOUR = f"e2e-team-{WORKER}", f"e2e-neighbour-{WORKER}"
NAMESPACES = (TEAM, NEIGHBOUR)
ON_S3, STORE = f"e2e-on-s3-{WORKER}", f"e2e-store-{WORKER}"
"""Of a team without any volume, and of the object store that it uses instead."""
POOL = f"e2e-{WORKER}"
GPU = f"{WORKER}.e2e.sluice.dev/gpu"
"""A resource of the tests' own: what else is on the cluster, an earlier demo say, keeps its GPUs."""
GPUS = 2
GPU_ON_S3 = f"{WORKER}.e2e-on-s3.sluice.dev/gpu"
"""That team's, so that it need not wait for the others' engine to be gone."""


def is_here(found: Object) -> bool:
    """Whether an object belongs to this worker's journeys."""
    return found["metadata"].get("namespace") in NAMESPACES
