"""What a row is known by when duplicates are looked for."""

from dataclasses import dataclass

SLOTS = 128
"""Numbers of a sketch, of one byte each. A share of equal words of 0.8 is estimated to 0.035 (standard deviation)."""


@dataclass(frozen=True, slots=True)
class Signature:
    """Of one row; 8 bytes, or 136 with a sketch."""

    exact: int
    """A hash of 64 bits of what the row says."""
    sketch: bytes = b""
    """SLOTS bytes of MinHash; empty where near duplicates are not looked for, or the row has too few words."""
