"""The README's commands, typed as they are printed, on a cluster where their objects are."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import yaml

from dev.cache import REPOSITORY
from tests.e2e.kubectl import Kubectl
from tests.unit.pages import commands

WATCHED_SECONDS = 5
"""A command that watches goes on for ever; so long it is looked at."""


def typed(beginning: str) -> list[str]:
    """The README's commands that begin so."""
    found = [command for command in commands(REPOSITORY / "README.md") if command.startswith(beginning)]
    assert found, f"the README has no command that begins with {beginning!r}"
    return found


def as_user(kubectl: Kubectl, helm: Path, namespace: str, folder: Path) -> dict[str, str]:
    """The environment of somebody who has kubectl and helm on PATH, and this namespace as their own."""
    config = yaml.safe_load(kubectl.kubeconfig.read_text())
    for context in config["contexts"]:
        context["context"]["namespace"] = namespace
    own = folder / "kubeconfig"
    own.write_text(yaml.safe_dump(config))
    path = f"{kubectl.program.parent}:{helm.parent}:{os.environ['PATH']}"
    return {**os.environ, "KUBECONFIG": str(own), "PATH": path}


def say(command: str, environment: Mapping[str, str]) -> str:
    """Type a command; what it prints. One that watches is ended after a while."""
    watches = command.endswith(" -w")
    words = ["timeout", str(WATCHED_SECONDS), "bash", "-c", command] if watches else ["bash", "-c", command]
    run = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode in ({0, 124} if watches else {0}), f"{command}\n{run.stdout}{run.stderr}"
    return run.stdout


@contextmanager
def beside(command: str, environment: Mapping[str, str]) -> Iterator[str]:
    """Type a command that ends in `&`; gives its first line, and ends it after the block."""
    words = ["bash", "-c", f"exec {command.removesuffix('&')}"]
    with subprocess.Popen(words, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline() if process.stdout else ""
        finally:
            process.terminate()
