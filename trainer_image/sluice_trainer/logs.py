"""Structured log lines, one JSON object each, on stdout.

Each has run_id, timestamp, agent, level (INFO, WARNING, or METRIC for a step's figures), event and message: the
message is for a person, and the event, of which there are few, for programs. What else there is depends on the event.
"""

import json
import sys
import threading
from datetime import UTC, datetime

_LINE = threading.Lock()
_ALWAYS: dict[str, object] = {}


def always(**fields: object) -> None:
    """Add these fields to each line from now on."""
    _ALWAYS.update(fields)


def info(event: str, **fields: object) -> None:
    """Log something that nobody needs to act on."""
    _write("INFO", event, fields)


def metric(event: str, message: str, **figures: object) -> None:
    """Log figures of a step."""
    _write("METRIC", event, {"message": message, **figures})


def warning(event: str, **fields: object) -> None:
    """Log something that a person may want to change."""
    _write("WARNING", event, fields)


def _write(level: str, event: str, fields: dict[str, object]) -> None:
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    entry = {"timestamp": time, "level": level, "agent": "trainer", "event": event} | _ALWAYS | fields
    entry["message"] = fields.get("message") or event
    line = json.dumps(entry, ensure_ascii=False, default=str)
    with _LINE:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
