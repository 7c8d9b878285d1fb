"""Names that an address with wildcards means."""

import re
from collections.abc import Iterable
from functools import lru_cache

WILDCARDS = "*?"


def split_pattern(path: str) -> tuple[str, str]:
    """The folder in which to look, and the pattern below it: ("data/en", "*/part-?.jsonl").

    The pattern of a path without wildcards is its last segment.
    """
    segments = path.split("/")
    fixed = next((at for at, segment in enumerate(segments) if any(sign in segment for sign in WILDCARDS)), None)
    at = len(segments) - 1 if fixed is None else fixed
    return "/".join(segments[:at]), "/".join(segments[at:])


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a pattern means, in order.

    * and ? are within one segment of a name, ** is any number of segments. None of them means a segment that begins
    with . or _, as with pyarrow and Hive: ._rows.jsonl, .ipynb_checkpoints, _SUCCESS. A pattern whose segment begins
    so means those.
    """
    means = _expression(pattern)
    return sorted(name for name in names if means.fullmatch(name))


@lru_cache(maxsize=256)
def _expression(pattern: str) -> re.Pattern[str]:
    shown = r"(?![._])"
    parts = []
    segments = pattern.split("/")
    for at, segment in enumerate(segments):
        last = at == len(segments) - 1
        if segment == "**":
            parts.append(rf"(?:{shown}[^/]+/)*" + (rf"{shown}[^/]+" if last else ""))
            continue
        signs = {"*": "[^/]*", "?": "[^/]"}
        parts.append((shown if segment[:1] in WILDCARDS else "") + "".join(signs.get(c, re.escape(c)) for c in segment))
        parts.append("" if last else "/")
    return re.compile("".join(parts), re.DOTALL)
