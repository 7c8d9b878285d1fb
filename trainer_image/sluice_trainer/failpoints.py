"""Places at which a test ends or halts this process: SLUICE_FAILPOINT=<place>:<nth time>:<signal>. Unset: nothing."""

import os
import signal
import threading
from collections import Counter
from typing import Literal, get_args

ENV = "SLUICE_FAILPOINT"

Place = Literal[
    "stage-begins",  # nothing heavy is imported yet
    "model-loads",
    "model-loaded",
    "evaluates",  # each piece of the held-out rows
    "forward",  # each micro-batch
    "backward",
    "update-begins",
    "update-half-done",  # new weights, old progress
    "update-done",
    "state-copied",  # nothing of it is written yet
    "folder-made",
    "tensors-written",
    "progress-written",
    "folder-written",  # its manifest too, but nothing of it is durable
    "file-uploaded",  # to an object store
    "folder-synced",  # all of it is durable; in an object store all but its manifest
    "folder-set-aside",  # a damaged one of the same name
    "folder-renamed",  # in an object store: its manifest is there
    "folder-durable",
    "checkpoint-pruned",
    "training-completes",
    "file-written",
    "file-renamed",
    "adapter-written",
    "adapter-checked",
]
PLACES: tuple[Place, ...] = get_args(Place)

_times: Counter[str] = Counter()


def reached(place: Place) -> None:
    """Say that the process is here. The signal goes to this very thread, which does nothing after it."""
    wanted = os.environ.get(ENV)
    if wanted is None:
        return
    name, nth, number = wanted.split(":")
    if name == place:
        _times[name] += 1
        if _times[name] == int(nth):
            signal.pthread_kill(threading.get_ident(), signal.Signals[number])
