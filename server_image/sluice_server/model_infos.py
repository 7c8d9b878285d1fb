"""vLLM's cache of facts about model classes: filled when the image is built, copied into each new pod.

Before vLLM starts it inspects the model's class in a process of its own, which imports torch and vLLM once more (6 to
8 s on two cores), and caches the result. A new pod has no cache. vLLM checks a digest of the model's source, so that
it ignores a result of another version of vLLM.
"""

import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

IN_IMAGE = Path(sys.prefix) / "share" / "sluice"
"""In the environment whose vLLM it belongs to."""
_FOLDER = "modelinfos"
"""The cache's folder under VLLM_CACHE_ROOT; vLLM's name."""


def collect(architectures: Iterable[str]) -> None:
    """Fill the image's cache with these classes (`architectures` of config.json).

    Raises:
        KeyError: vLLM has no such class.
    """
    os.environ["VLLM_CACHE_ROOT"] = str(IN_IMAGE)
    from vllm.model_executor.models.registry import ModelRegistry

    for architecture in architectures:
        ModelRegistry.models[architecture].inspect_model_cls()
    for file in (IN_IMAGE / _FOLDER).iterdir():
        file.chmod(0o644)  # vLLM makes it readable by its own user only; pods run as another


def put_in_place(cache: Path) -> None:
    """Copy the image's cache into a pod's; `cache` is the pod's VLLM_CACHE_ROOT."""
    if (IN_IMAGE / _FOLDER).is_dir():
        shutil.copytree(IN_IMAGE / _FOLDER, cache / _FOLDER, dirs_exist_ok=True)
