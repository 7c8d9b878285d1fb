"""The store: every watched object as last seen, in plain maps, with the indices that the World shows.

Objects come from four sides, in any order and more than once: a watch's events, kopf's own lists, our full lists, and
the answers to our own requests. In any order this holds:

- An older resourceVersion never overwrites a newer one.
- A deleted uid never comes back.
- An unknown object that is not newer than the last full list was deleted before that list.
- A list removes and overwrites only what is not newer than itself. What it shows of an object is newer than what is
  held, unless etcd was restored from a backup with its revisions raised: then lists are newer than all that is held,
  and the objects in them are older.
- If versions go backwards (etcd was restored with its old revisions), none of this holds: a list replaces everything.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from sluice_api.adapter import Adapter
from sluice_api.finetunejob import FineTuneJob
from sluice_api.inferenceengine import InferenceEngine
from sluice_operator.observe import index_keys, parse_devices
from sluice_operator.observe.findings import Findings
from sluice_operator.observe.index import Index
from sluice_operator.observe.links import Links
from sluice_operator.observe.parse import WATCHED, Parsed, Stored, Unreadable, stored_key, uid_of, version_of
from sluice_operator.observe.parse_pod import is_ours
from sluice_operator.observe.table import Table
from sluice_operator.observe.views import (
    BudgetView,
    DeviceClaimView,
    Key,
    PodView,
    SliceView,
    SlotView,
    StageJobView,
)
from sluice_operator.observe.world import Identity, World, identity

logger = logging.getLogger(__name__)

Listener = Callable[[Stored | None, Stored | None], None]
"""Called with an object as it was (None: it is new) and as it is (None: it is gone)."""


class Store:
    """What this process knows. Used from one event loop only. It never awaits, so no reader sees half a change."""

    def __init__(self, served: Callable[[str], bool] = lambda _namespace: True) -> None:
        """`served` says whether Sluice serves the custom resources of a namespace."""
        self.serves = served
        self._listeners: list[Listener] = []
        self._tables: dict[str, Table[Any]] = {kind: Table() for kind in WATCHED}
        self._shown: dict[str, Mapping[Key, Any]] = {
            kind: MappingProxyType(table.objects) for kind, table in self._tables.items()
        }

        self._pods_of: Index[Identity, PodView] = Index(index_keys.by_controller)
        self._pods_on: Index[str, PodView] = Index(index_keys.by_node)
        self._pods_coming: Index[str, PodView] = Index(index_keys.by_nominated_node)
        self._engine_pods: Index[tuple[str, str, int], PodView] = Index(index_keys.by_slot)
        self._placeholders: Index[tuple[str, str], PodView] = Index(index_keys.by_reserving_engine)
        self._scale_ups: Index[str, PodView] = Index(index_keys.by_asking_pool)
        self._stage_jobs_of: Index[Identity, StageJobView] = Index(index_keys.by_maker)
        self._slots_of: Index[Identity, SlotView] = Index(index_keys.by_maker)
        self._claiming: Index[bool, StageJobView] = Index(index_keys.by_having_claim)
        self._claims_on: Index[str, StageJobView] = Index(index_keys.by_claimed_node)
        self._preempting: Index[str, StageJobView] = Index(index_keys.by_preempted_attempt)
        self._budgets_in: Index[str, BudgetView] = Index(index_keys.by_namespace)
        self._slices_on: Index[str, SliceView] = Index(index_keys.by_device_node)
        self._device_claims_on: Index[str, DeviceClaimView] = Index(index_keys.by_device_node)
        self._slot_devices: Index[tuple[str, str], DeviceClaimView] = Index(index_keys.by_engine)
        self._unfinished: Index[str, FineTuneJob] = Index(index_keys.by_unfinished_pool)
        self._preparing: Index[bool, StageJobView] = Index(index_keys.by_preparing)
        self._to_prepare: Index[str, FineTuneJob] = Index(index_keys.by_unprepared_pool)
        self.links = Links()
        """Indices that the World does not show: which objects are looked at again when another one changes."""
        self._indices: Mapping[str, tuple[Index[Any, Any], ...]] = {
            "FineTuneJob": (
                self.links.jobs_in_pool,
                self.links.publishing_as,
                self.links.mounting,
                self._unfinished,
                self._to_prepare,
            ),
            "InferenceEngine": (self.links.engines_in_pool, self.links.serving_from),
            "Adapter": (self.links.adapters_on,),
            "Pod": (
                self._pods_of,
                self._pods_on,
                self._pods_coming,
                self._engine_pods,
                self._placeholders,
                self._scale_ups,
                self.links.orphaned_pods,
            ),
            "Job": (
                self._stage_jobs_of,
                self._claiming,
                self._claims_on,
                self._preempting,
                self._preparing,
                self.links.borrowing,
                self.links.orphaned_jobs,
            ),
            "Deployment": (self._slots_of,),
            "PersistentVolumeClaim": (self.links.bound_to,),
            "PodDisruptionBudget": (self._budgets_in,),
            "ResourceSlice": (self._slices_on,),
            "ResourceClaim": (self._device_claims_on, self._slot_devices),
        }

        self._memo: dict[Hashable, Any] = {}
        self._job_memos: dict[str, tuple[FineTuneJob, dict[Hashable, Any]]] = {}
        self._last_words: set[str] = set()  # uids of deleted pods that are still held for their termination messages
        self.findings = Findings(self._memo.clear)
        """What this process has found out and no watch brings."""
        self.serves_dra = True
        """Whether the cluster has the kinds of DRA. `look_for_dra` sets it."""

    @property
    def watched(self) -> tuple[str, ...]:
        """The kinds to watch in this cluster."""
        return tuple(kind for kind in WATCHED if self.serves_dra or kind not in parse_devices.DEVICES)

    def listen(self, listener: Listener) -> None:
        """Be told of every change from now on."""
        self._listeners.append(listener)

    def world(self) -> World:
        """What is known now. The maps are live and read-only, so a World is valid until the next `await`."""
        return World(
            jobs=self._shown["FineTuneJob"],
            engines=self._shown["InferenceEngine"],
            adapters=self._shown["Adapter"],
            pools=self._shown["GPUPool"],
            namespaces=self._shown["Namespace"],
            nodes=self._shown["Node"],
            pods=self._shown["Pod"],
            stage_jobs=self._shown["Job"],
            slots=self._shown["Deployment"],
            volume_claims=self._shown["PersistentVolumeClaim"],
            volumes=self._shown["PersistentVolume"],
            pods_of=self._pods_of.groups,
            pods_on=self._pods_on.groups,
            pods_coming=self._pods_coming.groups,
            engine_pods=self._engine_pods.groups,
            placeholders=self._placeholders.groups,
            scale_ups=self._scale_ups.groups,
            stage_jobs_of=self._stage_jobs_of.groups,
            slots_of=self._slots_of.groups,
            claiming=self._claiming.groups.get(True, MappingProxyType({})),
            claims_on=self._claims_on.groups,
            claims_from=self.links.borrowing.groups,
            preempting=self._preempting.groups,
            unfinished=self._unfinished.groups,
            preparing=self._preparing.groups.get(True, MappingProxyType({})),
            to_prepare=self._to_prepare.groups,
            starting=self.findings.starting,
            budgets_in=self._budgets_in.groups,
            serves_dra=self.serves_dra,
            slices_on=self._slices_on.groups,
            device_claims_on=self._device_claims_on.groups,
            slot_devices=self._slot_devices.groups,
            reports=self.findings.reports,
            heartbeats=self.findings.heartbeats,
            refused=self.findings.refused,
            term=self.findings.term,
            since=self.findings.since,
            set_aside=self.findings.set_aside,
            memo=self._memo,
            job_memos=self._job_memos,
        )

    def put(self, obj: Parsed, *, seen: bool) -> None:
        """Take in one object, unless what is known is newer.

        Args:
            obj: as `parse` gave it.
            seen: False for the answer to a request of ours, which no watch or list of all objects has brought yet.
        """
        table = self._tables[stored_key(obj).kind]
        held = table.objects.get(stored_key(obj))
        known_since = max(table.listed, version_of(held) if held is not None else 0)
        unknown = held is None or uid_of(held) != uid_of(obj)
        if unknown and (version_of(obj) <= known_since or uid_of(obj) in table.dead):
            return
        self._take(table, obj, seen=seen)

    def remove(self, key: Key, uid: str, version: int | None = None) -> None:
        """Forget a deleted object. Its uid never comes back.

        Args:
            version: the deletion's resourceVersion, if it is known.
        """
        table = self._tables[key.kind]
        table.newest = max(table.newest, version or 0)
        table.dead[uid] = math.inf if version is None else version
        held = table.objects.get(key)
        if held is not None and uid_of(held) == uid:
            self._vanish(key, held)
        if key in table.unreadable and table.unreadable[key].uid == uid:
            del table.unreadable[key]

    def held(self, key: Key) -> Stored | None:
        """The object of a key; None if none is held."""
        found: Stored | None = self._tables[key.kind].objects.get(key)
        return found

    def newest(self, kind: str) -> int:
        """The newest resourceVersion seen of a kind. A list that is requested after this may not be older."""
        return self._tables[kind].newest

    def replace(self, kind: str, objects: Iterable[Parsed], list_version: int, newest_before: int = 0) -> None:
        """Take in a full list of a kind: add, change and remove what differs.

        Args:
            list_version: the list's own resourceVersion.
            newest_before: what `newest` returned before the list was requested. If the list is older, versions went
                backwards.
        """
        table = self._tables[kind]
        here = list(objects)
        if list_version < newest_before:
            logger.warning("resource versions went backwards", extra={"kind": kind, "listed": list_version})
            self._forget_all(table)
        elif list_version < table.listed:
            return  # a list that was requested later has arrived before it
        for obj in here:
            if table.dead.get(uid_of(obj), 0) <= list_version:
                self._take(table, obj, seen=True, listed=list_version)
        listed_uids = {uid_of(obj) for obj in here}
        for key, held in tuple(table.objects.items()):
            if uid_of(held) not in listed_uids and version_of(held) <= list_version:
                self._vanish(key, held)
        table.unreadable = {
            key: obj
            for key, obj in table.unreadable.items()
            if obj.uid in listed_uids or obj.resource_version > list_version
        }
        table.listed = list_version
        table.newest = max(table.newest, list_version)
        table.forget_dead(list_version)

    def unreadable(self) -> list[Unreadable]:
        """Objects that can't be read and are set aside."""
        return [obj for table in self._tables.values() for obj in table.unreadable.values()]

    def _take(self, table: Table[Any], obj: Parsed, *, seen: bool, listed: int = 0) -> None:
        """Hold an object, unless a newer state of it is held.

        Args:
            listed: the version of the list that shows it; 0 if it came alone.
        """
        key, version = stored_key(obj), version_of(obj)
        table.newest = max(table.newest, version)
        held = table.objects.get(key)
        same = held is not None and uid_of(held) == uid_of(obj)
        seen = seen or (same and isinstance(held, StageJobView) and held.seen)
        if held is not None and _is_no_newer(version, version_of(held), listed):
            if seen and same and isinstance(held, StageJobView) and not held.seen:
                self._change(key, dataclasses.replace(held, seen=True))
            return
        if isinstance(obj, Unreadable):
            table.set_aside(obj)
            if isinstance(held, StageJobView):
                self._change(key, dataclasses.replace(held, readable=False))
            return
        table.unreadable.pop(key, None)
        if held is not None and not same:
            self._change(key, None)
        if isinstance(obj, StageJobView):
            obj = dataclasses.replace(obj, seen=seen)
        if self._is_kept(obj):
            self._change(key, obj)
            return
        if isinstance(obj, PodView) and obj.ended:
            table.dead[obj.uid] = version  # as good as deleted: whatever still shows it running is late
        self._change(key, None)

    def _is_kept(self, obj: Stored) -> bool:
        """Whether any decision depends on the object. Others' pods count only while they hold something of a node."""
        if isinstance(obj, PodView):
            return is_ours(obj.labels) or bool(obj.node and not obj.ended)
        if isinstance(obj, FineTuneJob | InferenceEngine | Adapter):
            return self.serves(obj.metadata.namespace)
        return True

    def _vanish(self, key: Key, held: Stored) -> None:
        """Remove a deleted object. A stage's ended pod stays while its Job exists, for its termination message."""
        if isinstance(held, PodView) and held.ended and held.owner is not None:
            job = self._tables["Job"].objects.get(Key("Job", key.namespace, held.owner.name))
            if job is not None and job.uid == held.owner.uid:
                self._last_words.add(held.uid)
                return
        self._change(key, None)
        if isinstance(held, StageJobView):
            self.findings.forget_attempt(held)
            for pod in tuple(self._pods_of.groups.get(identity(held), {}).values()):
                if pod.uid in self._last_words:
                    self._change(pod.key, None)

    def _forget_all(self, table: Table[Any]) -> None:
        table.listed, table.newest, table.dead = 0, 0, {}
        for key in tuple(table.objects):
            self._change(key, None)

    def _change(self, key: Key, new: Stored | None) -> None:
        """Change what is held: add, replace, or remove if `new` is None. Nothing else changes it."""
        self._memo.clear()
        objects = self._tables[key.kind].objects
        old = objects.get(key)
        if new is None:
            if old is None:
                return
            del objects[key]
        else:
            objects[key] = new
        if isinstance(old, FineTuneJob):
            self._job_memos.pop(old.metadata.uid, None)
        self.findings.forget(old, new, key)
        for index in self._indices.get(key.kind, ()):
            index.change(key, old, new)
        if new is None and isinstance(old, PodView):
            self._last_words.discard(old.uid)
        for listener in self._listeners:
            listener(old, new)


def _is_no_newer(version: int, held: int, listed: int) -> bool:
    """Whether an object's state adds nothing to what is held.

    A list shows the newest state that each object had at the list's version, however low the state's own version is.

    Args:
        version: the state's resourceVersion.
        held: the resourceVersion that is held.
        listed: as for `Store._take`.
    """
    return version == held or (held > listed if listed else version < held)
