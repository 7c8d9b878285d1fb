"""Rendering the chart as `helm install` would, without a cluster."""

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dev.cache import REPOSITORY
from dev.cluster.tools import tools

CHART = REPOSITORY / "charts" / "sluice"
DEV_VALUES = REPOSITORY / "dev" / "values.yaml"

Manifest = dict[str, Any]


def helm(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the Helm that the developers' commands use."""
    return subprocess.run([tools()["helm"], *words], capture_output=True, text=True, check=False)


@cache
def render(*words: str | Path) -> str:
    """All manifests, hooks included, as YAML."""
    rendered = helm("template", "sluice", CHART, "--namespace", "sluice-system", *words)
    assert rendered.returncode == 0, rendered.stderr
    return rendered.stdout


def manifests(*words: str | Path) -> list[Manifest]:
    """All manifests, hooks included."""
    return [manifest for manifest in yaml.safe_load_all(render(*words)) if manifest]


def one(kind: str, name: str, *words: str | Path) -> Manifest:
    """The one manifest of this kind and name."""
    (found,) = (m for m in manifests(*words) if (m["kind"], m["metadata"]["name"]) == (kind, name))
    return found
