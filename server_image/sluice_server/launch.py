"""The container `vllm`: runs vLLM's own server in this process, which is the child of first_process.py."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from sluice_api import pods
from sluice_api.artifacts import stray_link
from sluice_api.imports import importing
from sluice_api.slots import SlotSpec
from sluice_api.sources import volume_path
from sluice_server.flags import on_hub, vllm_command
from sluice_server.model_infos import put_in_place
from sluice_server.paths import SlotPaths
from sluice_server.start_gate import wait_at_start_gate

_MODEL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.safetensors")
"""The files that vLLM fetches of a repository, at most; --load-format limits the weights to safetensors."""


def serve() -> None:
    """Run `vllm serve` for the slot in the environment; return when vLLM has stopped."""
    paths = SlotPaths.here()
    if not paths.secret_file.exists():
        sys.exit(f"{paths.secret_file} is missing: the agent writes it and must be started first")
    slot = SlotSpec.model_validate_json(os.environ[pods.SLOT_ENV])
    if slot.sleep_level:
        wait_at_start_gate(paths)
    command = vllm_command(slot, paths)
    check_model(slot.spec.model.uri, paths)
    os.environ.update(command.environment)
    put_in_place(Path(command.environment["VLLM_CACHE_ROOT"]))
    sys.argv = ["vllm", *command.arguments]

    with importing():
        import vllm.entrypoints.openai.api_server  # noqa: F401  `main` would import it later
        from vllm.entrypoints.cli.main import main
    if may_fork(slot):
        _fork_the_engine()

    main()


def may_fork(slot: SlotSpec) -> bool:
    """Whether vLLM's engine process may be forked: on a CPU, by a process that computes with one thread.

    OpenMP's threads are lost in a fork, and the engine would wait for them for ever. There are some, because vLLM
    processes a picture with OMP_NUM_THREADS threads before it starts the engine (vllm/multimodal/encoder_budget.py).
    """
    return slot.device == "cpu" and pods.threads(slot.spec.resources.cpu) == 1


def _fork_the_engine() -> None:
    """Have vLLM fork its engine process on CPUs, so that it does not import everything a second time.

    `vllm serve` spawns it, because some devices forbid a fork, and vLLM's CPU platform asks for a spawn too. Here the
    worker is in the engine's process and bound to no cores (flags.py), so nothing in it needs a new process.
    """
    from vllm.platforms.cpu import CpuPlatform

    configure = CpuPlatform.check_and_update_config

    def configure_and_fork(config: Any) -> None:
        configure(config)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    CpuPlatform.check_and_update_config = staticmethod(configure_and_fork)
    # At a signal Python writes to the wakeup fd. The engine would share it with the API server, whose event loop would
    # take the engine's signals for its own.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


def check_model(uri: str, paths: SlotPaths) -> None:
    """Exit if a link in the model's folder leads out of it, or a model on the hub is larger than the pod's disk."""
    if in_claim := volume_path(uri):
        folder = paths.at(in_claim.mounted)
        if folder.is_dir() and (link := stray_link(folder)):
            stray = link.relative_to(folder)
            sys.exit(f"model.uri {uri}: {stray} is a link that leads out of the folder. Put the file there.")
        return
    from huggingface_hub import snapshot_download

    cache = paths.scratch / "huggingface" / "hub"
    cache.mkdir(parents=True, exist_ok=True)
    repository, revision = on_hub(uri)
    files = snapshot_download(
        repository, revision=revision, cache_dir=cache, allow_patterns=list(_MODEL_FILES), dry_run=True
    )
    size = sum(file.file_size or 0 for file in files if file.will_download)
    if size > (room := pods.disk_room(cache)):
        sys.exit(
            f"model.uri {uri}: its files have {size / 2**30:.1f} GiB, and this pod's disk has room for "
            f"{room / 2**30:.1f}. Raise resources.ephemeralStorage, or copy it into a volume and use pvc://."
        )
