"""How fast training goes, and how long it will still take."""

import time
from collections import deque
from statistics import median

from sluice_api.reports import LONGEST_ESTIMATE

_WINDOW_STEPS = 50


class Pace:
    """Durations and tokens of the last few steps."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int]] = deque(maxlen=_WINDOW_STEPS)
        self._since = time.monotonic()

    def start(self) -> None:
        """Note that a step begins."""
        self._since = time.monotonic()

    def step(self, tokens: int) -> None:
        """Note that a step with so many tokens has ended."""
        self._steps.append((time.monotonic() - self._since, tokens))

    @property
    def last_seconds(self) -> float:
        """Duration of the last step."""
        return self._steps[-1][0]

    @property
    def step_seconds(self) -> float:
        """Median duration of a step."""
        return median(seconds for seconds, _ in self._steps)

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second without padding, during steps only."""
        return sum(tokens for _, tokens in self._steps) / sum(seconds for seconds, _ in self._steps)

    def seconds_left(self, steps: int) -> int:
        """Estimated seconds for so many more steps."""
        return min(round(self.step_seconds * steps), LONGEST_ESTIMATE)
