"""A slot that sleeps while its GPUs are lent: what is asked of it, whether the memory is free, whether it woke well."""

import json
from dataclasses import dataclass
from pathlib import Path

from sluice_server.agent.vllm_client import Answer
from sluice_server.control import ObservedState

MAY_STAY = 0.2
"""Of what gpuMemoryUtilization let vLLM take of a GPU, so much may still be in use when it sleeps: its CUDA context,
its graphs and its communicators stay (7 of 166 GB on a GB200: vllm#47654), weights and KV cache must not."""

_MAY_DIFFER = 0.05
"""By so much may a log-probability, in nats, or a number of an embedding differ after waking."""


@dataclass(frozen=True)
class Rest:
    """What a slot that can sleep should do, and does."""

    wanted: bool | None
    """Whether its GPUs are another's (True) or its own (False); None where nobody says: it stays as it is."""
    sleeping: bool
    """vLLM says so, which proves nothing about memory."""
    proven: bool = False
    """It has woken, and answered as before it slept."""


@dataclass(frozen=True)
class Start:
    """Let vLLM start, which is held back."""


@dataclass(frozen=True)
class Sleep:
    """Remember how everything answers, then put vLLM to sleep; `abort` what is in flight: its time is over."""

    abort: bool


@dataclass(frozen=True)
class Wake:
    """Wake vLLM and compare its answers with those from before."""


def still_held(state: ObservedState, utilization: str) -> str:
    """Why a sleeping vLLM has not freed enough memory, for a person; empty when it has."""
    if not state.memory:
        return "vLLM sleeps, but NVML does not say how much memory of its GPUs is in use."
    for number, memory in enumerate(state.memory):
        most = MAY_STAY * float(utilization) * memory.total
        if memory.used > most:
            return (
                f"vLLM sleeps, but {_gib(memory.used)} of {_gib(memory.total)} GiB of GPU {number} are in use; at most "
                f"{_gib(most)} may be."
            )
    return ""


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f}"


def changed(before: Answer, after: Answer) -> bool:
    """Whether a model answers otherwise than it did."""
    if before.text != after.text or len(before.numbers) != len(after.numbers):
        return True
    return any(abs(old - new) > _MAY_DIFFER for old, new in zip(before.numbers, after.numbers, strict=True))


class Canaries:
    """How everything answered before vLLM went to sleep, kept on the agent's disk over its restarts.

    Kept for one boot of vLLM, and never replaced before they were compared: what answers in between may have woken
    badly already.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def of(self, boot: str) -> dict[str, Answer] | None:
        """The answers of this boot, by name; None when there are none."""
        try:
            kept = json.loads(self._file.read_text())
        except FileNotFoundError:
            return None
        if kept["boot"] != boot:
            return None
        return {name: Answer(text, tuple(numbers)) for name, (text, numbers) in kept["answers"].items()}

    def keep(self, boot: str, answers: dict[str, Answer]) -> None:
        """Write them down, whole or not at all."""
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps({"boot": boot, "answers": answers}))
        new.rename(self._file)

    def forget(self) -> None:
        """They have been compared."""
        self._file.unlink(missing_ok=True)
