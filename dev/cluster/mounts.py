"""Which checkout and which Python environment the containers of the dev images see."""

import json
import stat
from pathlib import Path

from dev.cache import REPOSITORY
from dev.cluster.images import CHECKOUT, ENVIRONMENT
from dev.errors import DevError

READABLE_BY_OTHERS = stat.S_IROTH | stat.S_IXOTH


def choose_mounts(state: Path, environment: Path) -> None:
    """Let containers that start from now on use this checkout and this environment.

    The last `up` wins, from whichever clone of the repository it was run.
    """
    for folder in (REPOSITORY, environment):
        if folder.stat().st_mode & READABLE_BY_OTHERS != READABLE_BY_OTHERS:
            raise DevError(f"pods run under other users' ids and can't read {folder}: run `chmod o+rx {folder}`")
    fresh = state / "mounts.json.fresh"
    fresh.write_text(json.dumps({CHECKOUT: str(REPOSITORY), ENVIRONMENT: str(environment)}, indent=1))
    fresh.replace(state / "mounts.json")
