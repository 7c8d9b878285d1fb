"""The wake check: after waking, every model must answer its canary request as it did before vLLM slept.

vLLM may wake with wrong weights and say nothing (vllm#53888).
"""

import json
from pathlib import Path

from sluice_server.agent.vllm_client import Answer

_TOLERANCE = 0.05
"""How much a log-probability, in nats, or a number of an embedding may change."""


class WakeCheck:
    """The answers from before vLLM slept, by model, in a file that outlives the agent's process.

    They belong to one boot of vLLM, and are not recorded again before they were compared: vLLM may have woken badly in
    between.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def recorded(self, boot: str) -> dict[str, Answer] | None:
        """The answers that were recorded in this boot; None if there are none."""
        try:
            content = json.loads(self._file.read_text())
        except FileNotFoundError:
            return None
        if content["boot"] != boot:
            return None
        return {name: Answer(text, tuple(numbers)) for name, (text, numbers) in content["answers"].items()}

    def record(self, boot: str, answers: dict[str, Answer]) -> None:
        """Write the answers to the file, whole or not at all."""
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps({"boot": boot, "answers": answers}))
        new.rename(self._file)

    def discard(self) -> None:
        """Delete the answers, which have been compared."""
        self._file.unlink(missing_ok=True)


def differs(before: Answer, after: Answer) -> bool:
    """Whether two answers to the canary request differ by more than rounding."""
    if before.text != after.text or len(before.numbers) != len(after.numbers):
        return True
    return any(abs(old - new) > _TOLERANCE for old, new in zip(before.numbers, after.numbers, strict=True))
