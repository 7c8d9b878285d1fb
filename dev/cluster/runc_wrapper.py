"""Stands between containerd and runc: adjusts a container's config.json, then becomes runc.

- Where root lacks CAP_SYS_RESOURCE (itself in a container, say), limits can't be raised and processes can't be
  shielded from the out-of-memory killer: what the config asks for is brought down to what can be had.
- A container of a dev image (`SLUICE_DEV_MOUNTS=1` in its environment) gets the checkout and its Python
  environment, read-only. `mounts.json` beside this file says which ones; it is read anew at each start.

This file is copied into the cluster's state folder and runs alone, so it imports nothing of ours.
"""

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

RUNC = "runc"
VALUE_OPTIONS = {"--bundle", "-b"}
PROCESS_OPTIONS = {"--process", "-p"}
DEV_MOUNTS = "SLUICE_DEV_MOUNTS=1"


def adjust_container(config: Path, mounts: Path) -> None:
    """Rewrite the config.json of a container that is about to be created."""
    spec = json.loads(config.read_text())
    lower_to_what_is_allowed(spec["process"])
    if DEV_MOUNTS in spec["process"].get("env", []):
        for target, source in json.loads(mounts.read_text()).items():
            bind = {"destination": target, "source": source, "type": "bind", "options": ["rbind", "ro"]}
            spec["mounts"].append(bind)
    config.write_text(json.dumps(spec))


def adjust_process(file: Path) -> None:
    """Rewrite the description of a process that is about to be run in a container (`kubectl exec`)."""
    process = json.loads(file.read_text())
    lower_to_what_is_allowed(process)
    file.write_text(json.dumps(process))


def lower_to_what_is_allowed(process: dict[str, Any]) -> None:
    """Bring the limits and the out-of-memory score to values that this process may set."""
    own_score = int(Path("/proc/self/oom_score_adj").read_text())
    if "oomScoreAdj" in process:
        process["oomScoreAdj"] = max(process["oomScoreAdj"], own_score)
    for limit in process.get("rlimits", []):
        hard = resource.getrlimit(getattr(resource, limit["type"]))[1]
        if hard != resource.RLIM_INFINITY:
            limit["hard"] = min(limit["hard"], hard)
            limit["soft"] = min(limit["soft"], hard)


def option(arguments: list[str], names: set[str]) -> str | None:
    """The value of an option, given as `--name value` or `--name=value`."""
    for position, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name in names:
            return value if equals else arguments[position + 1]
    return None


def main(arguments: list[str]) -> None:
    """Adjust what the command is about, and become runc."""
    if "create" in arguments or "run" in arguments:
        bundle = Path(option(arguments, VALUE_OPTIONS) or ".")
        adjust_container(bundle / "config.json", Path(__file__).with_name("mounts.json"))
    elif "exec" in arguments and (described := option(arguments, PROCESS_OPTIONS)):
        adjust_process(Path(described))
    os.execvp(RUNC, [RUNC, *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
