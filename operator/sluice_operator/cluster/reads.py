"""What does no watch bring, or not in time? One object as it is now, a Job's pods, and why a pod could not be made.

Objects that are read are in the store before the next decision.
"""

from datetime import datetime

from sluice_api.meta import JOB_NAME_LABEL
from sluice_operator.cluster.client import Api, Body
from sluice_operator.cluster.errors import ApiError, Gone, Outdated
from sluice_operator.cluster.kinds import KINDS, path_of
from sluice_operator.cluster.ownership import require_ours
from sluice_operator.observe.parse import WATCHED, parse
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key


class Reader:
    """Reads of single objects. Every method raises ApiError if the API server does not answer."""

    def __init__(self, api: Api, store: Store) -> None:
        self._api = api
        self._store = store

    async def read(self, key: Key) -> Body:
        """An object as it is now, whatever the watch has brought. It is put into the store."""
        answer = await self._api.request("GET", path_of(key))
        self.remember(key, answer)
        return answer

    async def ours(self, key: Key, manifest: Body) -> Body | None:
        """The object that a manifest would make; None if there is none.

        Raises:
            NameTaken: an object that is not ours has the name.
            Outdated: a predecessor's object has the name.
        """
        try:
            there = await self._api.request("GET", path_of(key))
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        require_ours(key, manifest, there)
        self.remember(key, there)
        return there

    async def same(self, key: Key, uid: str) -> Body:
        """This very object as it is now.

        Raises:
            Gone: it is gone, or another object has its name.
        """
        try:
            answer = await self.read(key)
        except ApiError as error:
            if error.status == 404:
                raise self.gone(key, uid) from None
            raise
        if answer["metadata"]["uid"] != uid:
            raise self.gone(key, uid)
        return answer

    async def is_there(self, key: Key, uid: str) -> bool:
        """Whether this very object exists."""
        try:
            await self.same(key, uid)
        except Gone:
            return False
        return True

    def remember(self, key: Key, answer: Body) -> None:
        """Put the API server's answer into the store, if its kind is watched."""
        if key.kind in WATCHED and answer["kind"] == key.kind:
            self._store.put(parse(key.kind, answer), seen=False)

    def forget(self, key: Key, uid: str) -> None:
        """Remove an object from the store."""
        if key.kind in WATCHED:
            self._store.remove(key, uid)

    def gone(self, key: Key, uid: str) -> Gone:
        """The error that an object is gone. The object is removed from the store."""
        self.forget(key, uid)
        return Gone(f"{key} with uid {uid} is not there any more")

    async def require(self, key: Key, uid: str) -> None:
        """Return only if this very object exists and is not being deleted. A watch may be late to say so.

        Raises:
            Outdated: it is gone or is being deleted.
        """
        if "deletionTimestamp" in (await self.same(key, uid))["metadata"]:
            raise Outdated(f"{key} is being deleted")

    async def failed_create(self, maker: Key, since: datetime | None = None) -> str:
        """Why no pod could be made for a Job or a slot's Deployment, by its newest event; empty if there is none.

        Args:
            since: older events are about other pods.
        """
        by_name = f"involvedObject.kind={maker.kind},involvedObject.name={maker.name}"
        which = "involvedObject.kind=ReplicaSet" if maker.kind == "Deployment" else by_name
        answer = await self._api.request(
            "GET",
            f"/api/v1/namespaces/{maker.namespace}/events",
            query={"fieldSelector": f"{which},reason=FailedCreate"},
        )
        events_of_it = [event for event in answer["items"] if _is_about(event["involvedObject"]["name"], maker)]
        events = sorted((event for event in events_of_it if since is None or _is_after(event, since)), key=_happened_at)
        return str(events[-1].get("message") or "") if events else ""

    async def look_for_pods(self, stage_job: Key) -> None:
        """Put a Job's pods into the store as they are now. The watch of pods may be behind that of Jobs."""
        where = KINDS["Pod"].collection(stage_job.namespace)
        query = {"labelSelector": f"{JOB_NAME_LABEL}={stage_job.name}"}
        for pod in (await self._api.request("GET", where, query=query))["items"]:
            self._store.put(parse("Pod", pod), seen=False)


def _is_about(name: str, maker: Key) -> bool:
    """Whether an event's object is the maker, or a ReplicaSet of it: its name is the Deployment's and a hash."""
    return name == maker.name or (maker.kind == "Deployment" and name.rpartition("-")[0] == maker.name)


def _is_after(event: Body, since: datetime) -> bool:
    """Whether an event is no older than a moment. Some events have whole seconds only, so seconds are compared."""
    at = _happened_at(event)
    return bool(at) and datetime.fromisoformat(at) >= since.replace(microsecond=0)


def _happened_at(event: Body) -> str:
    series = event.get("series") or {}
    return str(series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime") or "")
