"""The trainer alone, installed and run with the README's own commands in a new folder with a home of its own.

The packages come from uv's cache, and their versions from the lock file of this repository's own environment: what is
tried is that the extras name all that is needed, and nothing here is downloaded twice.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from dev import models
from dev.cache import REPOSITORY, cache_folder
from tests.unit.pages import commands

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

JOB = {
    "apiVersion": "sluice.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "tone"},
    "spec": {
        "model": {"uri": "pvc://models/tiny"},
        "dataset": {"uri": "pvc://datasets/rows.jsonl"},
        "output": {"uri": "pvc://adapters/out"},
        "lora": {"rank": 8},
        "training": {"dtype": "float32", "maxSteps": 2, "maxSequenceLength": 128},
    },
}
ROW = '{"messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "At sea."}]}\n'


def test_trainer_is_installed_and_run_as_the_readme_says(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "operator", "trainer_image"):
        source = REPOSITORY / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path / name)
    for claim in ("models", "datasets", "adapters"):
        (tmp_path / "volumes" / claim).mkdir(parents=True)
    models.models()
    models.place("tiny", tmp_path / "volumes" / "models")
    (tmp_path / "volumes" / "datasets" / "rows.jsonl").write_text(ROW * 8)
    (tmp_path / "finetunejob.yaml").write_text(yaml.safe_dump(JOB))
    found = [command for command in commands(REPOSITORY / "README.md") if command.startswith(("uv ", "PYTHONPATH="))]
    assert len(found) == 3

    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(found)],
        cwd=tmp_path,
        env=_of_a_new_user(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, (run.stdout + run.stderr)[-3000:]
    (made,) = (tmp_path / "volumes" / "adapters" / "out").iterdir()
    assert (made / "export" / "adapter_model.safetensors").is_file()
    assert f"The adapter is in {made}/export" in run.stdout


def _of_a_new_user(home: Path) -> dict[str, str]:
    """A home of its own; uv and its cache, and the versions that this repository's environment has."""
    cache = subprocess.run([_uv(), "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip()
    return {
        **{name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}},
        "HOME": str(home),
        "PATH": f"{_uv().parent}:{os.environ['PATH']}",
        "UV_CACHE_DIR": cache,
        "UV_CONSTRAINT": str(REPOSITORY / "dev" / "requirements.lock"),
        "OMP_NUM_THREADS": "1",
    }


def _uv() -> Path:
    return cache_folder() / "uv" / "bin" / "uv"
