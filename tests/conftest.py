"""What holds for every test: how hypothesis draws."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "suite",
    # How long an example takes depends on who else uses the machine. pytest-timeout ends what hangs.
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    # The same examples each time, so that a change fails by what it changed; `make soak` draws new ones.
    derandomize="SLUICE_SOAK_OPERATIONS" not in os.environ,
    database=None,
    print_blob=True,
)
settings.load_profile("suite")
