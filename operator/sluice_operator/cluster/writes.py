"""Every write but the Lease's: only while this process leads, and only to the very object that was meant.

What a write returns is in the store before the next decision. So no decision starts from an old state because a watch
is late.
"""

import logging
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Protocol

from sluice_api.meta import FIELD_MANAGER, PROGRESS_FIELD_MANAGER
from sluice_operator import metrics
from sluice_operator.cluster.client import APPLY_PATCH, ATTEMPTS, JSON, JSON_PATCH, MERGE_PATCH, Api, Body
from sluice_operator.cluster.errors import ApiError, NotLeading, Outdated
from sluice_operator.cluster.events import EventLog, Happened
from sluice_operator.cluster.kinds import KINDS, path_of
from sluice_operator.cluster.ownership import controller
from sluice_operator.cluster.patches import add, binding, test
from sluice_operator.cluster.reads import Reader
from sluice_operator.observe.parse import uid_of, version_of
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key
from sluice_operator.writes import key_of_manifest

logger = logging.getLogger(__name__)

ANNOTATIONS_MANAGER = f"{FIELD_MANAGER}-annotations"
"""Not FIELD_MANAGER: an apply of annotations alone would remove everything else that FIELD_MANAGER owns."""

_NOT_AS_TESTED = "the server rejected our request due to an error in our request"
"""All that the API server says when the test of a JSON patch fails."""


class Leadership(Protocol):
    """Whether this process may write."""

    @property
    def term(self) -> int:
        """The lease's transition count."""

    def check(self) -> float:
        """Seconds for which the lease is surely held.

        Raises:
            NotLeading: it is not surely held.
        """


class Writer(Reader):
    """Single writes, for the reports' server and `Cluster.do`.

    Every method raises NotLeading if this process does not surely hold the lease, Outdated if the object is gone or has
    changed (the store knows by then), and ApiError for every other failure.
    """

    def __init__(self, api: Api, store: Store, leadership: Leadership, reporter: str) -> None:
        """`reporter` is this process's name in events."""
        super().__init__(api, store)
        self._leadership = leadership
        self._events = EventLog(reporter)

    @property
    def term(self) -> int:
        """The lease's transition count, which every new claim carries."""
        return self._leadership.term

    async def create(self, manifest: Body) -> Body:
        """Make an object and return it. If it exists already, it is left unchanged and returned.

        It may exist although the POST is refused: an earlier POST got no answer, and a quota counts what that one made.

        Raises:
            NameTaken: an object that is not ours has the name.
        """
        key = key_of_manifest(manifest)
        try:
            return await self._write("create", key, "POST", KINDS[key.kind].collection(key.namespace), manifest)
        except ApiError as error:
            if not (error.is_refusal or error.reason == "AlreadyExists"):
                raise
            there = await self.ours(key, manifest)
            if there is None:
                raise
            return there

    async def apply(self, manifest: Body) -> Body:
        """Make an object as the manifest says, or change it if it is ours, by server-side apply.

        If the manifest has a uid, only that object is changed, and none is ever made. Without one, the object is read
        first: a used-up quota would refuse a POST even if the object exists.

        Raises:
            NameTaken: an object that is not ours has the name.
        """
        key = key_of_manifest(manifest)
        if "uid" not in manifest["metadata"] and (there := await self.ours(key, manifest)):
            manifest = {**manifest, "metadata": {**manifest["metadata"], "uid": there["metadata"]["uid"]}}
        return await self._apply("apply", key, path_of(key), manifest, FIELD_MANAGER)

    async def apply_status(self, key: Key, uid: str, status: Body) -> None:
        """Server-side apply of the whole status, without a job's progress."""
        await self._apply_status("status", key, uid, status, FIELD_MANAGER, ATTEMPTS)

    async def apply_progress(self, key: Key, uid: str, progress: Body) -> None:
        """Server-side apply of status.progress, by a field manager that owns nothing else.

        There is one attempt only: if it fails, there is something newer to write.
        """
        await self._apply_status("progress", key, uid, {"progress": progress}, PROGRESS_FIELD_MANAGER, attempts=1)

    async def annotate(self, key: Key, uid: str, annotations: dict[str, str]) -> Body:
        """Server-side apply of annotations. They must be all that Sluice has there: others of Sluice's are removed."""
        body = _identity(key, uid)
        body["metadata"]["annotations"] = annotations
        return await self._apply("annotate", key, path_of(key), body, ANNOTATIONS_MANAGER)

    async def delete(self, key: Key, uid: str, *, foreground: bool, within: int | None = None) -> None:
        """Delete this very object. If it is gone already, that is fine.

        Args:
            foreground: whether its children are deleted first.
            within: a grace period in seconds, for a pod that was deleted with a longer one.
        """
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Foreground" if foreground else "Background",
            **({} if within is None else {"gracePeriodSeconds": within}),
        }
        try:
            answer = await self._write("delete", key, "DELETE", path_of(key), body)
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            if error.status == 409 and await self.is_there(key, uid):
                raise
            self.forget(key, uid)
            return
        if answer["kind"] == "Status":  # it had neither a finalizer nor a grace period, so it is gone
            self.forget(key, uid)

    async def remove(self, manifest: Body) -> None:
        """Delete the object that a manifest would make, if it exists and has the same controller."""
        key = key_of_manifest(manifest)
        try:
            there = await self.read(key)
        except ApiError as error:
            if error.status != 404:
                raise
            return
        if controller(there).get("uid") == controller(manifest).get("uid"):
            await self.delete(key, there["metadata"]["uid"], foreground=False)

    async def bind_pod(self, key: Key, uid: str, hostname: str, at: datetime) -> None:
        """Let a gated pod go to the node of a hostname: one patch removes the gate and sets the node selector."""
        operations = binding(await self.same(key, uid), uid, hostname, at)
        if operations:
            await self._patch("bind", key, uid, path_of(key), operations)

    async def nominate_pod(self, key: Key, uid: str, node: str) -> None:
        """Say which node a pod is meant for (KEP-5278). Nothing is done if it is on a node already."""
        operations = [test("/metadata/uid", uid), add("/status/nominatedNodeName", node)]
        try:
            await self._patch("nominate", key, uid, f"{path_of(key)}/status", operations)
        except ApiError as error:
            if error.status != 422 or not (await self.same(key, uid))["spec"].get("nodeName"):
                raise

    async def scale_slot(self, key: Key, uid: str, size: int) -> None:
        """Set the replicas of a slot's Deployment to 0 or 1."""
        operations = [test("/metadata/uid", uid), add("/spec/replicas", size)]
        await self._patch("scale", key, uid, path_of(key), operations)

    async def event(self, key: Key, uid: str, level: str, reason: str, message: str) -> None:
        """Tell people something on an object. A failure is logged, and the event is lost.

        Args:
            level: Normal or Warning.
        """
        what = Happened(key, uid, level, reason, message)
        try:
            self._events.written(what, await self._send_event(what))
        except (ApiError, NotLeading) as error:
            logger.warning("an event was lost", extra={"object": str(key), "reason": reason, "error": str(error)})

    async def _send_event(self, what: Happened) -> Body:
        """Write an event, or count one that says the same once more. One attempt only."""
        now = datetime.now(UTC)
        if known := self._events.again(what, now):
            place, patch = known
            try:
                return await self._write(
                    "event", place, "PATCH", path_of(place), patch, content_type=MERGE_PATCH, attempts=1
                )
            except ApiError as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise
                self._events.forget(what)
        event = self._events.new(what, now)
        place = key_of_manifest(event)
        return await self._write("event", place, "POST", KINDS["Event"].collection(place.namespace), event, attempts=1)

    async def _apply_status(self, verb: str, key: Key, uid: str, status: Body, manager: str, attempts: int) -> None:
        """Replace what `manager` owns of a status.

        The API server does not compare uids in an apply to /status (seen in 1.37: a re-created object takes the dead
        one's status). So the write is tied to the version that is held, and after a conflict to the one that exists.
        After ATTEMPTS conflicts it gives up: somebody changes the object all the time.
        """
        held = self._store.held(key)
        version = version_of(held) if held is not None and uid_of(held) == uid else None
        for left in reversed(range(ATTEMPTS)):
            if version is None:
                version = (await self.same(key, uid))["metadata"]["resourceVersion"]
            body = _identity(key, uid)
            body["metadata"]["resourceVersion"] = str(version)
            body["status"] = status
            try:
                await self._apply(verb, key, f"{path_of(key)}/status", body, manager, attempts)
            except ApiError as error:
                if error.reason != "Conflict" or not left:
                    raise
                version = None
            else:
                return

    async def _apply(self, verb: str, key: Key, path: str, body: Body, manager: str, attempts: int = ATTEMPTS) -> Body:
        """Server-side apply. If the uid does not fit, it is refused with 409 (no object) or 422 (another object)."""
        uid = body["metadata"].get("uid", "")
        query = {"fieldManager": manager, "force": "true"}
        try:
            return await self._write(
                verb, key, "PATCH", path, body, content_type=APPLY_PATCH, query=query, attempts=attempts
            )
        except ApiError as error:
            if uid and error.status in (404, 409, 422):
                await self.same(key, uid)
            raise

    async def _patch(self, verb: str, key: Key, uid: str, path: str, operations: list[Body]) -> Body:
        """Send a JSON patch. Its first operation must test the uid."""
        query = {"fieldManager": FIELD_MANAGER}
        try:
            return await self._write(verb, key, "PATCH", path, operations, content_type=JSON_PATCH, query=query)
        except ApiError as error:
            if error.status in (404, 422):
                await self.same(key, uid)
            if error.status == 422 and _NOT_AS_TESTED in error.message:
                raise Outdated(f"{key} is not what it was") from None
            raise

    async def _write(
        self,
        verb: str,
        key: Key,
        method: str,
        path: str,
        body: object,
        *,
        content_type: str = JSON,
        query: dict[str, str] | None = None,
        attempts: int = ATTEMPTS,
    ) -> Body:
        """One write. The lease is checked before each attempt, and no attempt may last longer than the lease."""
        try:
            answer = await self._api.request(
                method,
                path,
                query=query,
                body=body,
                content_type=content_type,
                patience=self._leadership.check,
                attempts=attempts,
            )
        except ApiError as error:
            metrics.API_WRITES.labels(verb, key.kind, error.reason).inc()
            raise
        metrics.API_WRITES.labels(verb, key.kind, "ok").inc()
        self.remember(key, answer)
        return answer


def _identity(key: Key, uid: str) -> Body:
    metadata = {"name": key.name, "uid": uid, **({"namespace": key.namespace} if key.namespace else {})}
    return {"apiVersion": KINDS[key.kind].api_version, "kind": key.kind, "metadata": metadata}
