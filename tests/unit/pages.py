"""The YAML that a page shows."""

import re
from pathlib import Path
from typing import Any

import yaml


def shown(page: Path) -> list[list[dict[str, Any]]]:
    """The objects of each block, in the page's order."""
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    return [[found for found in yaml.safe_load_all(block) if found] for block in blocks]
