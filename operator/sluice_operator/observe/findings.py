"""What this process has found out itself and no watch brings: reports of pods, refusals, who is set aside.

Memory only: a new leader finds it out again.
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
    """Each change voids what was worked out from the state before."""

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
        """Where pods reach the API server, as last looked up."""
        self.term = 0
        """The lease's transition count while, or since, this process leads; see `begin_term`."""
        self.since: datetime | None = None
        """When this term began."""

    def begin_term(self, term: int, now: datetime) -> None:
        """Begin to lead. What was heard in an earlier term proves nothing: others have led and listened since then."""
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
        """Set an object aside, until it changes or is readmitted."""
        self._set_aside[found.key] = found
        self._changed()

    def readmit(self, key: Key) -> None:
        """Look at an object again like at any other."""
        self._set_aside.pop(key, None)
        self._changed()

    def refuse(self, engine: Key, reason: Reason, message: str, now: datetime, pause: timedelta) -> None:
        """Keep what the API server refuses an engine, and how long it is not tried again."""
        self._pauses[engine] = pause
        self._refused[engine] = Refusal(reason, message, now + pause)
        self._changed()

    def last_pause(self, engine: Key) -> timedelta | None:
        """How long the last refusal was in force; None since it has got on."""
        return self._pauses.get(engine)

    def try_again(self, engine: Key) -> None:
        """The pause after a refusal is over."""
        self._refused.pop(engine, None)
        self._changed()

    def has_got_on(self, engine: Key) -> None:
        """What was refused was made: the next refusal begins with the shortest pause."""
        self._pauses.pop(engine, None)

    def start(self, job: Key, *, begins: bool) -> None:
        """Note that a job's Prepare is being made at this moment, or is no more."""
        self.starting = self.starting | {job} if begins else self.starting - {job}
        self._changed()

    def forget(self, old: Stored | None, new: Stored | None, key: Key) -> None:
        """An object has changed, or is gone."""
        if old is None or new is None or not _only_its_status(old, new):
            self._set_aside.pop(key, None)
        if new is None:
            self._refused.pop(key, None)
            self._pauses.pop(key, None)
            if isinstance(old, PodView):
                self._reports.pop(old.uid, None)

    def forget_attempt(self, stage_job: StageJobView) -> None:
        """A training attempt is gone."""
        self._heartbeats.pop(stage_job.uid, None)


def _only_its_status(old: Stored, new: Stored) -> bool:
    """Whether nothing of a custom resource has changed but what we and others say of it."""
    if not isinstance(old, Resource) or not isinstance(new, Resource):
        return False
    metadata = old.metadata.model_copy(update={"resource_version": new.metadata.resource_version})
    return metadata == new.metadata and getattr(old, "spec", None) == getattr(new, "spec", None)
