"""How often one poster may post: a token bucket for each."""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class _Bucket:
    level: float
    at: float


class Buckets:
    """One bucket per key. A bucket that is full again is as good as none, and is forgotten."""

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float], most: int = 50_000) -> None:
        """`per_second` drops come in, at most `burst` are kept, for at most `most` keys."""
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._most = most
        self._buckets: dict[str, _Bucket] = {}

    def take(self, key: str) -> int:
        """0 when the poster may go on; otherwise the seconds after which it may."""
        now = self._clock()
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self._most and not self._forget_full(now):
                return 1
            bucket = self._buckets[key] = _Bucket(self._burst, now)
        bucket.level = min(self._burst, bucket.level + (now - bucket.at) * self._per_second)
        bucket.at = now
        if bucket.level < 1:
            return math.ceil((1 - bucket.level) / self._per_second)
        bucket.level -= 1
        return 0

    def give_back(self, key: str) -> None:
        """Undo one take: it was for nothing that counts."""
        if bucket := self._buckets.get(key):
            bucket.level = min(self._burst, bucket.level + 1)

    def _forget_full(self, now: float) -> bool:
        """Make room; False when every bucket is in use."""
        refill = self._burst / self._per_second
        self._buckets = {key: bucket for key, bucket in self._buckets.items() if now - bucket.at < refill}
        return len(self._buckets) < self._most

    def __len__(self) -> int:
        """Buckets that are kept."""
        return len(self._buckets)
