"""The YAML that a page shows."""

import re
from pathlib import Path
from typing import Any

import yaml


def shown(page: Path) -> list[list[dict[str, Any]]]:
    """The Kubernetes objects of each block, in the page's order."""
    return [[found for found in block if "kind" in found] for block in _blocks(page)]


def traces(page: Path) -> list[dict[str, Any]]:
    """What else a page shows: traces for the simulator."""
    return [found for block in _blocks(page) for found in block if "kind" not in found]


def _blocks(page: Path) -> list[list[dict[str, Any]]]:
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    return [[found for found in yaml.safe_load_all(block) if found] for block in blocks]
