"""Counts of requests in flight, in all and by version, and whether the slot drains."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic


@dataclass
class Traffic:
    """Counts the requests of clients. Used from one event loop only."""

    in_flight: int = 0
    by_version: Counter[str] = field(default_factory=Counter)
    terminating: bool = False
    _last_began: float = field(default_factory=monotonic)
    _draining_since: float | None = None

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request, from its first byte to the last byte of its response."""
        self.in_flight += 1
        self._last_began = monotonic()
        try:
            yield
        finally:
            self.in_flight -= 1

    @contextmanager
    def on(self, version: str) -> Iterator[None]:
        """Count the part of a request during which a version, or the base model, must stay loaded."""
        self.by_version[version] += 1
        try:
            yield
        finally:
            self.by_version[version] -= 1
            if not self.by_version[version]:
                del self.by_version[version]

    @property
    def draining(self) -> bool:
        """Whether clients are asked to send their next request to another replica."""
        return self._draining_since is not None

    def drain(self, wanted: bool) -> None:
        """Begin to drain, or stop. A pod that is being deleted does not stop."""
        if not (wanted or self.terminating):
            self._draining_since = None
        elif self._draining_since is None:
            self._draining_since = monotonic()

    def terminate(self) -> None:
        """Drain for good, because the pod is being deleted."""
        self.terminating = True
        self.drain(True)

    @property
    def quiet_seconds(self) -> float:
        """Since the last request began."""
        return monotonic() - self._last_began

    @property
    def draining_seconds(self) -> float:
        """Since the slot began to drain; 0 while it does not."""
        return 0.0 if self._draining_since is None else monotonic() - self._draining_since
