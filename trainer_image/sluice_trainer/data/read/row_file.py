"""A file that rows are read from."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RowFile:
    """A file on this machine."""

    path: Path
    """Without links, as it was found."""
    name: str
    """As messages show it: claim/path for a volume."""
