"""What this process has found out and no watch brings: reports of pods, refusals, and objects that are set aside.

It is kept in memory only: a new leader finds it out again.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from types import MappingProxyType

from sluice_api.reasons import Reason
from sluice_api.resource import Resource
from sluice_operator.observe.parse import Stored
from sluice_operator.observe.views import Address, Key, PodView, StageJobView
from sluice_operator.observe.world import Heartbeat, Refusal, Reported, SetAside


class Findings:
    """Each change is announced by `changed`, so that nothing stays that was worked out before it."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._reports: dict[str, Reported] = {}
        self._heartbeats: dict[str, Heartbeat] = {}
        self._set_aside: dict[Key, SetAside] = {}
        self._refused: dict[Key, Refusal] = {}
        self._pauses: dict[Key, timedelta] = {}
        self._starting: set[Key] = set()
        self.reports = MappingProxyType(self._reports)
        self.heartbeats = MappingProxyType(self._heartbeats)
        self.set_aside = MappingProxyType(self._set_aside)
        self.refused = MappingProxyType(self._refused)
        self.starting = frozenset[Key]()
        self.api_servers: tuple[Address, ...] = ()
        """Addresses at which pods reach the API server, as last looked up."""
        self.term = 0
        """The lease's transition count when this process began to lead; 0 before that."""
        self.since: datetime | None = None
        """When this term began; None before the first."""

    def begin_term(self, term: int, now: datetime) -> None:
        """Begin to lead. Reports of an earlier term prove nothing, since another process may have led in between."""
        self._reports.clear()
        self._heartbeats.clear()
        self.term, self.since = term, now
        self._changed()

    def report(self, pod_uid: str, reported: Reported) -> None:
        """Keep the newest report of an engine's pod."""
        self._reports[pod_uid] = reported
        self._changed()

    def heartbeat(self, stage_job_uid: str, heartbeat: Heartbeat) -> None:
        """Keep the newest sign of life of a training attempt."""
        self._heartbeats[stage_job_uid] = heartbeat
        self._changed()

    def leave_alone(self, found: SetAside) -> None:
        """Set an object aside until it changes or is readmitted."""
        self._set_aside[found.key] = found
        self._changed()

    def readmit(self, key: Key) -> None:
        """Treat an object like all others again."""
        self._set_aside.pop(key, None)
        self._changed()

    def refuse(self, engine: Key, reason: Reason, message: str, now: datetime, pause: timedelta) -> None:
        """Keep what the API server refuses an engine, and do not try it again before the pause is over."""
        self._pauses[engine] = pause
        self._refused[engine] = Refusal(reason, message, now + pause)
        self._changed()

    def last_pause(self, engine: Key) -> timedelta | None:
        """The pause after the engine's last refusal; None if what was refused has been made since."""
        return self._pauses.get(engine)

    def try_again(self, engine: Key) -> None:
        """End the pause after a refusal."""
        self._refused.pop(engine, None)
        self._changed()

    def has_got_on(self, engine: Key) -> None:
        """What was refused has been made, so the next pause is the shortest again."""
        self._pauses.pop(engine, None)

    def start(self, job: Key, *, begins: bool) -> None:
        """Note that a job's Prepare is being made now, or no longer."""
        self.starting = self.starting | {job} if begins else self.starting - {job}
        self._changed()

    def forget(self, old: Stored | None, new: Stored | None, key: Key) -> None:
        """Forget what was found out about an object that has changed or is gone."""
        if old is None or new is None or not _only_its_status(old, new):
            self._set_aside.pop(key, None)
        if new is None:
            self._refused.pop(key, None)
            self._pauses.pop(key, None)
            if isinstance(old, PodView):
                self._reports.pop(old.uid, None)

    def forget_attempt(self, stage_job: StageJobView) -> None:
        """Forget the heartbeat of a training attempt that is gone."""
        self._heartbeats.pop(stage_job.uid, None)


def _only_its_status(old: Stored, new: Stored) -> bool:
    """Whether only the status of a custom resource has changed."""
    if not isinstance(old, Resource) or not isinstance(new, Resource):
        return False
    metadata = old.metadata.model_copy(update={"resource_version": new.metadata.resource_version})
    return metadata == new.metadata and getattr(old, "spec", None) == getattr(new, "spec", None)
