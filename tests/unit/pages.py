"""What a page shows: YAML, and commands to type."""

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


def commands(page: Path) -> list[str]:
    """The commands that a page tells its reader to type, in its order; one that goes on over several lines is one.

    They stand in blocks of no language, as do programs' outputs, whose lines begin with no program's name.
    """
    parts = re.split(r"^```(.*)\n", page.read_text(), flags=re.MULTILINE)
    blocks = [block for language, block in zip(parts[1::4], parts[2::4], strict=True) if not language]
    lines = [line for block in blocks for line in block.replace("\\\n", "").splitlines()]
    typed = [re.sub(r"\s+#\s.*", "", line) for line in lines if re.match(_PROGRAMS, line)]
    return [re.sub(r"\s+", " ", command).strip() for command in typed]


_PROGRAMS = r"(make|helm|kubectl|curl|uv|PYTHONPATH=\S+ python3?|python3?) "
