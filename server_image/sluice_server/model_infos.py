"""What vLLM asks of a model's class before it starts: found out when the image is built, put in place at each start.

vLLM finds it out in a process of its own, which imports torch and vLLM once more (6 to 8 s on two cores), and keeps
the answer in its cache, which a new pod does not have. It checks a digest of the model's source, so an answer of
another version of vLLM is as good as none.
"""

import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

IN_IMAGE = Path(sys.prefix) / "share" / "sluice"
"""Beside the packages that it speaks of."""
_FOLDER = "modelinfos"
"""vLLM's name for it, under VLLM_CACHE_ROOT."""


def collect(architectures: Iterable[str]) -> None:
    """Write down what vLLM asks of these classes (config.json: architectures), in the image that is being built.

    Raises:
        KeyError: vLLM has no such class.
    """
    os.environ["VLLM_CACHE_ROOT"] = str(IN_IMAGE)
    from vllm.model_executor.models.registry import ModelRegistry

    for architecture in architectures:
        ModelRegistry.models[architecture].inspect_model_cls()
    for file in (IN_IMAGE / _FOLDER).iterdir():
        file.chmod(0o644)  # vLLM writes for its own user; pods run as another


def put_in_place(cache: Path) -> None:
    """Give a new pod's vLLM the image's answers; `cache` is its VLLM_CACHE_ROOT."""
    if (IN_IMAGE / _FOLDER).is_dir():
        shutil.copytree(IN_IMAGE / _FOLDER, cache / _FOLDER, dirs_exist_ok=True)
