"""What no watch brings, or not in time: one object as it is now, a Job's pods, why a pod could not be made.

What is read goes into the store before the next decision.
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
    """Reads of single objects. All raise ApiError when the API server does not answer."""

    def __init__(self, api: Api, store: Store) -> None:
        self._api = api
        self._store = store

    async def read(self, key: Key) -> Body:
        """An object as it is now, whatever the watch has brought; the store knows it by then."""
        answer = await self._api.request("GET", path_of(key))
        self.remember(key, answer)
        return answer

    async def ours(self, key: Key, manifest: Body) -> Body | None:
        """The object that a manifest would make, if it is there already.

        Raises:
            NameTaken: another one has its name.
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
        """The object as it is now.

        Raises:
            Gone: it is not there, or another one is.
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
        """Whether this very object is there."""
        try:
            await self.same(key, uid)
        except Gone:
            return False
        return True

    def remember(self, key: Key, answer: Body) -> None:
        """Have the store know what the API server answered."""
        if key.kind in WATCHED and answer["kind"] == key.kind:
            self._store.put(parse(key.kind, answer), seen=False)

    def forget(self, key: Key, uid: str) -> None:
        """Have the store know that an object is gone."""
        if key.kind in WATCHED:
            self._store.remove(key, uid)

    def gone(self, key: Key, uid: str) -> Gone:
        """The error that says so, once the store knows."""
        self.forget(key, uid)
        return Gone(f"{key} with uid {uid} is not there any more")

    async def require(self, key: Key, uid: str) -> None:
        """Raises Outdated unless this very object is there and stays: a watch may be late to say that it is gone."""
        if "deletionTimestamp" in (await self.same(key, uid))["metadata"]:
            raise Outdated(f"{key} is being deleted")

    async def failed_create(self, maker: Key, since: datetime | None = None) -> str:
        """Why no pod could be made for a Job or a slot's Deployment, in its controller's newest words; empty if none.

        Args:
            since: older words are about other pods.
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
        """Have the store know a Job's pods as they are now: the watch of pods may be behind that of Jobs."""
        where = KINDS["Pod"].collection(stage_job.namespace)
        query = {"labelSelector": f"{JOB_NAME_LABEL}={stage_job.name}"}
        for pod in (await self._api.request("GET", where, query=query))["items"]:
            self._store.put(parse("Pod", pod), seen=False)


def _is_about(name: str, maker: Key) -> bool:
    """A Deployment's ReplicaSets have its name and a hash."""
    return name == maker.name or (maker.kind == "Deployment" and name.rpartition("-")[0] == maker.name)


def _is_after(event: Body, since: datetime) -> bool:
    """To the second: that is all that some events say."""
    at = _happened_at(event)
    return bool(at) and datetime.fromisoformat(at) >= since.replace(microsecond=0)


def _happened_at(event: Body) -> str:
    series = event.get("series") or {}
    return str(series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime") or "")
