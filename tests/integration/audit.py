"""The API server's audit log: who wrote what, and when."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

WRITES = {"create", "update", "patch", "delete", "deletecollection"}


@dataclass(frozen=True)
class Write:
    """One answered request that changes something."""

    user: str
    agent: str
    verb: str
    resource: str
    namespace: str
    name: str
    status: int
    began: datetime
    ended: datetime

    def __str__(self) -> str:
        """As an assertion shows it."""
        return f"{self.ended:%H:%M:%S.%f} {self.verb} {self.resource} {self.name} {self.status} by {self.user}"


@dataclass
class AuditLog:
    """The log from one moment on."""

    path: Path
    begin: int

    @classmethod
    def since_now(cls, path: Path) -> "AuditLog":
        """What is written from now on."""
        return cls(path, path.stat().st_size)

    def writes(self, namespace: str, agent: str = "sluice", user: str = "") -> list[Write]:
        """Successful and refused writes to a namespace, in the order of their ends."""
        found = [write for write in self._all() if write.namespace == namespace and write.agent == agent]
        return sorted((w for w in found if user in ("", w.user)), key=lambda write: write.ended)

    def lists(self, resource: str, agent: str = "sluice") -> int:
        """How often the objects of a kind were listed in full: an operator lists those of the whole cluster."""
        places = (e.get("objectRef", {}) for e in self._entries() if (e["verb"], e.get("userAgent")) == ("list", agent))
        return sum(place.get("resource") == resource for place in places)

    def _all(self) -> Iterator[Write]:
        return (_write(entry) for entry in self._entries() if entry["verb"] in WRITES)

    def _entries(self) -> Iterator[dict[str, Any]]:
        """Requests that were answered."""
        with self.path.open("rb") as log:
            log.seek(self.begin)
            for line in log:
                if line.endswith(b"\n"):
                    entry = json.loads(line)
                    if entry["stage"] == "ResponseComplete":
                        yield entry


def _write(entry: dict[str, object]) -> Write:
    place = entry.get("objectRef") or {}
    assert isinstance(place, dict)
    user, answer = entry["user"], entry.get("responseStatus") or {}
    assert isinstance(user, dict)
    assert isinstance(answer, dict)
    resource = "/".join(str(place[part]) for part in ("resource", "subresource") if place.get(part))
    return Write(
        user=str(user["username"]),
        agent=str(entry.get("userAgent", "")),
        verb=str(entry["verb"]),
        resource=resource,
        namespace=str(place.get("namespace", "")),
        name=str(place.get("name", "")),
        status=int(answer.get("code", 0)),
        began=datetime.fromisoformat(str(entry["requestReceivedTimestamp"])),
        ended=datetime.fromisoformat(str(entry["stageTimestamp"])),
    )
