"""The container `vllm`: runs vLLM's own server in this process, which is the child of first_process.py."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from sluice_api import pods
from sluice_api.artifacts import CHAT_TEMPLATE, stray_link
from sluice_api.imports import importing
from sluice_api.slots import SlotSpec
from sluice_files.errors import FileError
from sluice_server.flags import Command, vllm_command
from sluice_server.model import engine_model, folder_problem
from sluice_server.model_infos import put_in_place
from sluice_server.paths import SlotPaths
from sluice_server.start_gate import wait_at_start_gate


def serve() -> None:
    """Run `vllm serve` for the slot in the environment; return when vLLM has stopped."""
    paths = SlotPaths.here()
    if not paths.secret_file.exists():
        sys.exit(f"{paths.secret_file} is missing: the agent writes it and must be started first")
    slot = SlotSpec.model_validate_json(pods.told(pods.SLOT_ENV))
    if slot.sleep_level:
        wait_at_start_gate(paths)
    command = prepared_command(slot, paths)
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


def prepared_command(slot: SlotSpec, paths: SlotPaths) -> Command:
    """vLLM's command, after a look at the model; exit with what is wrong with it.

    A chat template that the spec has is written where vLLM reads it.
    """
    uri = slot.spec.model.uri
    try:
        model = engine_model(slot.spec, paths)
    except FileError as error:
        sys.exit(error.in_field("model.chatTemplate.uri", "model.credentials"))
    if not model.folder.is_dir():
        sys.exit(f"model.uri {uri}: there is no such folder. Correct model.uri.")
    if link := stray_link(model.folder):
        stray = link.relative_to(model.folder)
        sys.exit(f"model.uri {uri}: {stray} is a link that leads out of the folder. Put the file there.")
    if problem := folder_problem(model.folder):
        sys.exit(f"model.uri {uri}: {problem}")
    template = None
    if model.chat_template is not None:
        template = paths.scratch / CHAT_TEMPLATE
        template.write_text(model.chat_template, encoding="utf-8")
    return vllm_command(slot, paths, model.folder, has_pickles=model.has_pickles, chat_template=template)
