"""The container `vllm`: vLLM's own server in this very process (which first_process.py watches)."""

import os
import sys
from pathlib import Path

from sluice_api import pods
from sluice_api.slots import SlotSpec
from sluice_server.flags import vllm_command
from sluice_server.model_infos import put_in_place
from sluice_server.place import Place
from sluice_server.waiting_room import wait_for_the_agent


def serve() -> None:
    """Become `vllm serve` for the slot in the environment; returns when vLLM has stopped."""
    place = Place.here()
    if not place.secret_file.exists():
        sys.exit(f"{place.secret_file} is missing: the agent writes it and must be started first")
    slot = SlotSpec.model_validate_json(os.environ[pods.SLOT_ENV])
    if slot.sleep_level:
        wait_for_the_agent(place)
    command = vllm_command(slot, place)
    os.environ.update(command.environment)
    put_in_place(Path(command.environment["VLLM_CACHE_ROOT"]))
    sys.argv = ["vllm", *command.arguments]

    from vllm.entrypoints.cli.main import main

    main()
