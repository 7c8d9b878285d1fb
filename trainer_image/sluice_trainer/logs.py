"""Structured log lines: one event with its fields, as JSON, on stdout."""

import json
import sys
import threading
from datetime import UTC, datetime

_LINE = threading.Lock()
_ALWAYS: dict[str, object] = {}


def always(**fields: object) -> None:
    """Give each line from now on these fields."""
    _ALWAYS.update(fields)


def info(event: str, **fields: object) -> None:
    """Log something that nobody needs to act on."""
    _write("info", event, fields)


def warning(event: str, **fields: object) -> None:
    """Log something that a person may want to change."""
    _write("warning", event, fields)


def _write(level: str, event: str, fields: dict[str, object]) -> None:
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    entry = {"time": time, "level": level, "event": event, **_ALWAYS, **fields}
    line = json.dumps(entry, ensure_ascii=False, default=str)
    with _LINE:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
