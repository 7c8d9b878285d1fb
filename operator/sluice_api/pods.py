"""What the operator's builders promise to the programs inside the pods they make.

Both sides read these names from here, so that neither can drift.
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sluice_api.quantity import amount

STAGE_ENV = "SLUICE_STAGE"
"""Trainer pods: a stages.StageSpec as JSON, in as many variables as it needs (`variables`)."""

SLOT_ENV = "SLUICE_SLOT"
"""Engine pods, every container: a slots.SlotSpec as JSON, in as many variables as it needs (`variables`)."""

REPORT_URL_ENV = "SLUICE_REPORT_URL"
"""Scheme, host and port of the operator's progress Service; reports.*_PATH is appended."""

PREPARE_MEMORY = "4Gi"
"""What a Prepare pod has of resources.memory at most. Rows go through it and to the disk. It takes some 600 MiB itself,
120 MiB for each of up to eight processes, and for each million rows 50 MiB; the step `deduplicate` with `near` takes
250 MiB more for each million."""

TOKEN_FILE = "/var/run/secrets/sluice/token"
"""The projected, pod-bound token that authenticates a report. Re-read before each post: it rotates."""

TRUST_FILE = "/var/run/secrets/sluice/ca.crt"
"""Beside the token, where reports go by TLS: who signs the operator's certificate. Absent: whom the system trusts."""

TOKEN_AUDIENCE = "sluice"

LEADER_ENV = "MASTER_ADDR"
"""Trainer pods of a group: the host name of the pod with index 0, as torchrun's environment has it."""

LEADER_PORT = 29500
"""Trainer pods of a group: where the pod with index 0 brings them together."""

INDEX_ENV = "JOB_COMPLETION_INDEX"
"""Trainer pods of a group: which one this is. The Job controller sets it."""

SHARE_ENV = "SLUICE_GPU_SHARE"
"""Trainer pods that share a GPU: the percentage of its memory that the process keeps to by itself."""

HAMI_MEMORY = "nvidia.com/gpumem-percentage"
"""The resource by which HAMi's device plugin limits a pod to a part of each GPU's memory."""

TERMINATION_FILE = "/dev/termination-log"
"""Where a stage leaves its stages.StageOutcome; the kubelet puts it into the pod's status."""

SCRATCH = "/scratch"
"""A pod's own disk, empty at its start; TMPDIR and HOME point here. The root filesystem is read-only."""

DEFAULT_DISK = "50Gi"
"""How much of its node's disk a pod may fill, unless its spec says otherwise."""

DISK_REQUEST = "1Gi"
"""What it is sure to have of it. Less than the limit: a pod that needs little must fit a node with little."""

DISK_ENV = "SLUICE_DISK_BYTES"
"""Trainer pods and vLLM: how much of the node's disk the container may fill before the kubelet evicts its pod."""

THREADS_ENV = "OMP_NUM_THREADS"
"""Trainer pods, and vLLM on CPUs: with how many threads a process computes what no GPU does."""

SHARED = "/run/sluice"
"""Engine pods: memory shared by agent and vLLM; the agent writes its secret here before vLLM starts."""

SECRET_FILE = f"{SHARED}/secret"

ADAPTERS = "/adapters"
"""Engine pods: where the agent copies adapter bytes to, for vLLM to read (read-only there)."""

CACHE = "/cache"
"""Engine pods: models and adapters that were fetched, on the pod's own disk or in model.cacheClaim."""

FETCHED_FILE = f"{SHARED}/model.json"
"""Engine pods: where in CACHE the container `model` has put the model, for vLLM and the agent."""

FETCHED_TEMPLATE = f"{SHARED}/chat_template.jinja"
"""Engine pods: model.chatTemplate, if the container `model` had to fetch it."""

MODEL_CONTAINER = "model"
"""Engine pods: the container that fetches the model before any other starts."""

SERVE_PORT = 8000
"""Engine pods: vLLM's OpenAI API, behind the middleware."""

AGENT_PORT = 8001
"""Engine pods: the agent's /readyz, /livez and /metrics."""

METRICS_PORT = 9090
"""Trainer pods and operator pods: /metrics."""

GRACE_MARGIN_SECONDS = 30
"""Engine pods: terminationGracePeriodSeconds is the drain timeout and this."""


_PIECE = 30_000
"""Characters, of up to four bytes each. Linux starts no program with a variable of 128 KiB (MAX_ARG_STRLEN)."""


def variables(name: str, text: str) -> dict[str, str]:
    """The environment variables in which a program is told a text of any length: NAME, NAME_2, NAME_3 and so on."""
    pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
    return {name if number == 1 else f"{name}_{number}": piece for number, piece in enumerate(pieces, 1)}


def told(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text that `variables` has put into the environment.

    Raises:
        KeyError: there is none.
    """
    pieces = [environment[name]]
    while (piece := environment.get(f"{name}_{len(pieces) + 1}")) is not None:
        pieces.append(piece)
    return "".join(pieces)


def disk_room(folder: str | os.PathLike[str]) -> int:
    """Bytes that still fit into a folder of the pod's own disk: what node and kubelet allow, less what is there.

    The pod's own disk is where its temporary files are.
    """
    free = shutil.disk_usage(folder).free
    if not (limit := int(os.environ.get(DISK_ENV, "0"))):
        return free
    used = 0
    for parent, _, names in os.walk(tempfile.gettempdir()):
        for name in names:
            with suppress(FileNotFoundError):  # another download has just put it into its place
                found = Path(parent, name).lstat()
                used += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return max(0, min(free, limit - used))


def threads(cpu: str, processes: int = 1) -> int:
    """With how many threads each process of a pod computes: as many as the pod asks for cores, at least one.

    By itself torch takes one for each core of the node. They wait for each other wherever pods beside have the cores,
    and on a node of another size a training that goes on would add up in another order.

    Args:
        cpu: what the pod asks for, as a quantity: 500m, 4.
    """
    return max(1, amount("cpu", cpu) // 1000 // processes)
