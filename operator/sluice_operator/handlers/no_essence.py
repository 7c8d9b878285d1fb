"""Keep kopf from copying every object of every event.

kopf takes a deep copy of each object to find out what its edge-triggered handlers would want to know (kopf:
_cogs/configs/diffbase.py, build). Here there are none, and with thousands of objects the copies were the largest part
of a start.
"""

from typing import Any

import kopf


class NoEssence(kopf.DiffBaseStorage):
    """Nothing to compare, nothing kept."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """No copy."""
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        """Nothing was stored."""

    def store(self, **_: Any) -> None:
        """Nothing is stored."""
