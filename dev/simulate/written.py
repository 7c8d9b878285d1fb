"""Writes, played in memory: what the operator's own reconcilers ask for, done to the objects of a WorldBuilder."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Protocol, assert_never

from dev.simulate.builder import WorldBuilder
from sluice_api.meta import RESTARTED_AT_ANNOTATION
from sluice_operator.cluster.cluster import Cluster, Failure
from sluice_operator.cluster.errors import Gone, NotLeading
from sluice_operator.observe.parse import WATCHED, parse, uid_of, version_of
from sluice_operator.observe.raw import noted_moment
from sluice_operator.observe.views import Key, PodView, SlotView, StageJobView
from sluice_operator.writes import (
    Annotate,
    Apply,
    Bind,
    Create,
    Delete,
    Event,
    Keep,
    Manifest,
    Nominate,
    Require,
    Scale,
    Status,
    Write,
    key_of_manifest,
)


class Clock(Protocol):
    """Who knows what time it is."""

    @property
    def now(self) -> Any:
        """The present moment."""


class Stopped(BaseException):
    """The process has ended between two writes."""


class PlayedWrites(Cluster):
    """An API server that does each write at once and refuses none."""

    def __init__(self, builder: WorldBuilder, clock: Clock) -> None:
        nobody: Any = SimpleNamespace()
        super().__init__(nobody, builder.store, nobody, "simulated")
        self._builder = builder
        self._clock = clock
        self.done: list[Write] = []
        self.left: int | None = None
        """So many writes are done before the process stops; None for any number."""
        self.late: tuple[Write, int] | None = None
        """The write at which a stopped process stood, and the version of the object for which it was meant."""

    async def do_each(self, sequences: Mapping[Key, Sequence[Write]]) -> dict[Key, Failure]:
        """One after the other: any order in which they may have been done is as good."""
        failed: dict[Key, Failure] = {}
        for key, writes in sequences.items():
            try:
                refused = await self.do(writes)
            except Gone as gone:
                failed[key] = gone
            else:
                if refused is not None:
                    failed[key] = refused
        return failed

    async def same(self, key: Key, uid: str) -> Manifest:
        """What is in the store is what is there; nothing of it is read."""
        held = self._store.held(key)
        if held is None or uid_of(held) != uid:
            raise Gone(f"{key} with uid {uid} is not there any more")
        return {"metadata": {"uid": uid}}

    async def look_for_pods(self, stage_job: Key) -> None:
        """All pods are known."""

    async def failed_create(self, maker: Key, since: Any = None) -> str:
        """No pod is refused."""
        del maker, since
        return ""

    async def _do(self, write: Write, made: dict[Key, str]) -> None:
        if self.left == 0:
            self.late = (write, self._version(write))
            raise Stopped
        self.done.append(write)
        if self.left is not None and not isinstance(write, Require | Keep | Event):
            self.left -= 1
        await self._play(write, made)

    async def arrive(self) -> None:
        """The late write of a stopped process arrives, if the object that it was meant for is still as it was.

        The process has looked at its lease before. It finds out that it leads no more before the next one.
        """
        late, self.late = self.late, None
        if late is None or (isinstance(late[0], Status) and self._version(late[0]) != late[1]):
            return
        try:
            await self._play(late[0], {})
        except (Gone, NotLeading):
            return

    def _version(self, write: Write) -> int:
        held = self._store.held(write.key) if isinstance(write, Status) else None
        return version_of(held) if held is not None else 0

    async def _play(self, write: Write, made: dict[Key, str]) -> None:  # noqa: C901 - a line for each kind
        match write:
            case Require(key, uid):
                await self.same(key, uid)
            case Create(manifest):
                key = key_of_manifest(manifest)
                made[key] = self._made(key, manifest, anew=False)
            case Apply(manifest):
                self._made(key_of_manifest(manifest), manifest, anew=True)
            case Keep() | Event():
                pass
            case Annotate(key, uid, annotations):
                self._annotate(key, uid, dict(annotations))
            case Bind(key, uid, _, at):
                self._change(key, uid, gates=(), bound_at=at)
            case Nominate(key, uid, node):
                self._change(key, uid or made.get(key, ""), nominated_node=node)
            case Scale(key, uid, size):
                self._change(key, uid, size=size)
            case Delete(key, uid):
                self._delete(key, uid)
            case Status(key, uid, status):
                self._say(key, uid, status)
            case _:
                assert_never(write)

    def _made(self, key: Key, manifest: Manifest, *, anew: bool) -> str:
        """Make an object, or have one that is there be so; what nobody watches is not kept."""
        if key.kind not in WATCHED:
            return ""
        held = self._store.held(key)
        if held is not None and (not anew or manifest["metadata"].get("uid", uid_of(held)) != uid_of(held)):
            return uid_of(held)
        if held is None and "uid" in manifest["metadata"]:
            return ""
        version, _ = self._builder._next()
        uid = uid_of(held) if held is not None else f"{key.kind.lower()}-{key.name}-{version}"
        made = held.created if isinstance(held, SlotView) else self._clock.now
        metadata = {"uid": uid, "resourceVersion": str(version), "creationTimestamp": made.isoformat()}
        self._builder.put(parse(key.kind, {**manifest, "metadata": {**manifest["metadata"], **metadata}}))
        return uid

    def _annotate(self, key: Key, uid: str, annotations: dict[str, str]) -> None:
        if key.kind == "Deployment":
            self._change(key, uid, restarted_at=noted_moment(annotations, RESTARTED_AT_ANNOTATION))
            return
        job = self._store.world().jobs.get(key)
        if job is None or job.metadata.uid != uid:
            raise Gone(f"{key} with uid {uid} is not there any more")
        if job.metadata.annotations != annotations:
            version = str(self._builder._next()[0])
            changed = job.metadata.model_copy(update={"annotations": annotations, "resource_version": version})
            self._builder.put(job.model_copy(update={"metadata": changed}))

    def _change(self, key: Key, uid: str, **changes: Any) -> None:
        held = self._store.held(key)
        if not isinstance(held, PodView | SlotView | StageJobView) or held.uid != uid:
            raise Gone(f"{key} with uid {uid} is not there any more")
        if any(getattr(held, name) != value for name, value in changes.items()):
            self._builder.put(replace(held, resource_version=self._builder._next()[0], **changes))

    def _delete(self, key: Key, uid: str) -> None:
        """Stages' Jobs, Deployments and pods that are on a node take their time."""
        held = self._store.held(key)
        if held is None or uid_of(held) != uid:
            return
        at_once = isinstance(held, PodView) and (not held.node or held.goes_at_once)
        if isinstance(held, PodView | SlotView | StageJobView) and not at_once:
            self._change(key, uid, deleting=True)
        else:
            self._store.remove(key, uid)

    def _say(self, key: Key, uid: str, status: Manifest) -> None:
        resource = self._store.world().resource(key)
        if resource is None or resource.metadata.uid != uid:
            raise Gone(f"{key} with uid {uid} is not there any more")
        new = type(resource.status).model_validate(status)
        version = str(self._builder._next()[0])
        metadata = resource.metadata.model_copy(update={"resource_version": version})
        self._builder.put(resource.model_copy(update={"status": new, "metadata": metadata}))
