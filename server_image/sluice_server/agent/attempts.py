"""Adapters that ended vLLM or the agent while they were tried: after the second time they are tried no more.

Both processes start again by themselves, and would try the adapter again, for ever: the base model and all other
adapters would be gone for as long as each start takes.
"""

import json
from collections.abc import Collection
from pathlib import Path

from sluice_server.agent.resources import Key

MOST = 2
"""The first time may be chance: vLLM may end for another reason just then."""


class Attempts:
    """What is tried now, and how often each adapter has ended a process, in a file that outlives both processes."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            content = json.loads(file.read_text())
        except FileNotFoundError:
            content = {"trying": None, "ended": {}}
        self._ended: dict[str, int] = content["ended"]
        self._trying: list[str] | None = content["trying"]
        if self._trying and not self._trying[1]:
            self._blame()  # the agent that fetched it is no more

    def begin(self, key: Key, boot: str = "") -> None:
        """Note that an adapter is tried by a boot of vLLM; without one, by the agent itself."""
        self._trying = [_name(key), boot]
        self._write()

    def fetched(self) -> None:
        """Note that the agent is through with what it tried."""
        self._trying = None
        self._write()

    def observed(self, boot: str, *, healthy: bool, busy: bool) -> None:
        """Compare what vLLM tried with an observation of vLLM, which is from after the try unless `busy`."""
        if not self._trying or not self._trying[1]:
            return
        if self._trying[1] != boot or (not healthy and not busy):
            self._blame()
        elif not busy:
            self._trying = None
            self._write()

    def keep(self, keys: Collection[Key]) -> None:
        """Forget all other adapters."""
        names = {_name(key) for key in keys}
        if not names.issuperset(self._ended):
            self._ended = {name: count for name, count in self._ended.items() if name in names}
            self._write()

    def held(self, key: Key) -> bool:
        """Whether the adapter is tried no more."""
        return self._ended.get(_name(key), 0) >= MOST

    def _blame(self) -> None:
        if self._trying:
            self._ended[self._trying[0]] = self._ended.get(self._trying[0], 0) + 1
        self._trying = None
        self._write()

    def _write(self) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps({"trying": self._trying, "ended": self._ended}))
        new.rename(self._file)


def _name(key: Key) -> str:
    return f"{key.uid}/{key.generation}"
