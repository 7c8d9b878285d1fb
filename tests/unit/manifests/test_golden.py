"""The builders' output, reviewed as YAML. `make golden` rewrites it; `git diff` shows; a person decides."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.manifests.examples import GOLDEN

FOLDER = Path(__file__).parents[2] / "golden"
REWRITE = os.environ.get("SLUICE_GOLDEN") == "rewrite"


class Readable(yaml.SafeDumper):
    """YAML without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def as_yaml(manifests: list[dict[str, Any]]) -> str:
    return yaml.dump_all(manifests, Dumper=Readable, sort_keys=False, width=110, allow_unicode=True)


@pytest.mark.parametrize("name", GOLDEN)
def test_manifest_is_as_reviewed(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    text = as_yaml(GOLDEN[name])
    if REWRITE:
        path.write_text(text)
    assert path.read_text() == text, "if the change is wanted: make golden"


def test_every_golden_manifest_is_built() -> None:
    ours = {path.stem for path in FOLDER.glob("*.yaml")}
    assert set(GOLDEN) <= ours
