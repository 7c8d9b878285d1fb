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
    """The pattern as a regular expression that takes little time for every name, however many wildcards it has.

    What follows a wildcard is found where it is first, and looked for nowhere else (an atomic group): another wildcard
    behind it means whatever a later place would leave. Only the last wildcard tries several places.
    """
    first, *others = _between(pattern.split("/"), "**")
    parts = ["".join(f"{_segment(segment)}/" for segment in first)]
    for at, segments in enumerate(others, start=1):
        if at < len(others):
            parts.append(rf"(?>(?:{_ANY}/)*?{''.join(f'{_segment(segment)}/' for segment in segments)})")
        else:
            parts.append(rf"(?:{_ANY}/)*" + ("/".join(map(_segment, segments)) or _ANY))
    return re.compile("".join(parts) if others else "/".join(map(_segment, first)), re.DOTALL)


_SHOWN = r"(?![._])"
_ANY = rf"{_SHOWN}[^/]+"


def _segment(segment: str) -> str:
    first, *others = _between(list(segment), "*")
    signs = ["".join("[^/]" if sign == "?" else re.escape(sign) for sign in part) for part in (first, *others)]
    middle = "".join(f"(?>[^/]*?{part})" for part in signs[1:-1])
    return (_SHOWN if segment[:1] in WILDCARDS else "") + signs[0] + middle + (f"[^/]*{signs[-1]}" if others else "")


def _between(parts: list[str], sign: str) -> list[list[str]]:
    """The parts before, between and behind those that are the sign."""
    found: list[list[str]] = [[]]
    for part in parts:
        if part == sign:
            found.append([])
        else:
            found[-1].append(part)
    return found
