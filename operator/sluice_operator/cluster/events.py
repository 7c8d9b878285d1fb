"""Events as client-go's recorder makes them, so that `kubectl describe` and `get events` show them in order.

kubectl sorts by lastTimestamp, which only events of the core API may set when they are made. It has whole seconds.
Within a second kubectl sorts by name, so a name ends in the exact time.
"""

from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from sluice_api.meta import GROUP
from sluice_api.model import plain
from sluice_operator.cluster.client import Body
from sluice_operator.cluster.kinds import KINDS
from sluice_operator.observe.views import Key

_MAX_MESSAGE = 1024
_REMEMBERED = 4096


class Happened(NamedTuple):
    """What an event tells about an object."""

    key: Key
    uid: str
    level: str
    """Normal or Warning."""
    reason: str
    message: str

    @property
    def namespace(self) -> str:
        """The namespace of the event; `default` for an object that has none."""
        return self.key.namespace or "default"


@dataclass(frozen=True, slots=True)
class Told:
    """An event that was written."""

    name: str
    count: int


class EventLog:
    """The newest events of this process. An event that happens again is counted instead of written again."""

    def __init__(self, reporter: str) -> None:
        """`reporter` is this process's name in events."""
        self._reporter = reporter
        self._sent: OrderedDict[Happened, Told] = OrderedDict()

    def again(self, what: Happened, now: datetime) -> tuple[Key, Body] | None:
        """The key of the event that says the same, and the merge patch that counts it once more; None without one."""
        sent = self._sent.get(what)
        if sent is None:
            return None
        return Key("Event", what.namespace, sent.name), {"count": sent.count + 1, "lastTimestamp": _second(now)}

    def new(self, what: Happened, now: datetime) -> Body:
        """A new event."""
        key, at = what.key, _second(now)
        return {
            "apiVersion": KINDS["Event"].api_version,
            "kind": "Event",
            "metadata": {"name": f"{key.name[:200]}.{round(now.timestamp() * 1e9):x}", "namespace": what.namespace},
            "involvedObject": {
                "apiVersion": KINDS[key.kind].api_version,
                "kind": key.kind,
                "namespace": key.namespace,
                "name": key.name,
                "uid": what.uid,
            },
            "type": what.level,
            "reason": what.reason,
            "action": what.reason,
            "message": plain(what.message[:_MAX_MESSAGE]),
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
            "source": {"component": "sluice"},
            "reportingComponent": f"{GROUP}/sluice",
            "reportingInstance": self._reporter[:128],
        }

    def written(self, what: Happened, event: Body) -> None:
        """Remember an event that the API server has returned."""
        self._sent[what] = Told(event["metadata"]["name"], int(event.get("count") or 1))
        self._sent.move_to_end(what)
        if len(self._sent) > _REMEMBERED:
            self._sent.popitem(last=False)

    def forget(self, what: Happened) -> None:
        """Forget an event that is gone. The API server keeps events for an hour."""
        self._sent.pop(what, None)


def _second(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
