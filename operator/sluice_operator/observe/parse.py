"""From an object as the API server sends it to what decisions need. Any object gives a value: none raises."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary, ref

from pydantic import ValidationError

from sluice_api.adapter import Adapter
from sluice_api.claim import OUTCOMES_BYTES, Claim
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.meta import (
    ATTEMPT_LABEL,
    CLAIM_ANNOTATION,
    ENGINE_LABEL,
    HIGHEST_ATTEMPT,
    JOB_LABEL,
    OUTCOMES_ANNOTATION,
    RESTARTED_AT_ANNOTATION,
    SLOT_LABEL,
    STAGE_LABEL,
    index_of,
)
from sluice_api.model import Model
from sluice_api.quantity import amounts
from sluice_api.selectors import LabelSelector
from sluice_api.stages import Stage
from sluice_operator.observe.parse_devices import parse_device_claim, parse_slice
from sluice_operator.observe.parse_pod import parse_pod, template_in
from sluice_operator.observe.raw import Body, condition, metadata_of, moment, noted_moment
from sluice_operator.observe.views import (
    BudgetView,
    Key,
    NamespaceView,
    NodeRequirement,
    NodeView,
    SlotView,
    StageJobView,
    Taint,
    View,
    VolumeClaimView,
    VolumeView,
)

Custom = FineTuneJob | InferenceEngine | Adapter | GPUPool
AnyCustom = TypeVar("AnyCustom", FineTuneJob, InferenceEngine, Adapter, GPUPool)
Stored = View | Custom
"""What the store can hold."""

_MOST_CLAIM_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An object that can't be read, so no decision uses it. It is set aside, and all others go on."""

    key: Key
    uid: str
    resource_version: int
    error: str


Parsed = Stored | Unreadable


def parse(kind: str, body: Body) -> Parsed:
    """Read an object of a watched kind; `Unreadable` if it is malformed.

    Raises:
        KeyError: the kind is not in WATCHED.
    """
    reader = _READERS[kind]
    try:
        return reader(body)
    except ValidationError as invalid:
        return _unreadable(kind, body, _explained(invalid))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        return _unreadable(kind, body, f"{type(error).__name__}: {error}")


def _unreadable(kind: str, body: object, error: str) -> Unreadable:
    metadata = body.get("metadata") if isinstance(body, Mapping) else None
    metadata = metadata if isinstance(metadata, Mapping) else {}
    version = str(metadata.get("resourceVersion"))
    return Unreadable(
        Key(kind, str(metadata.get("namespace") or ""), str(metadata.get("name") or "")),
        str(metadata.get("uid") or ""),
        int(version) if version.isdecimal() else 0,
        error[:1000],
    )


def _explained(invalid: ValidationError) -> str:
    """The first three errors, as `field: what is wrong`."""
    errors = invalid.errors(include_url=False, include_context=False, include_input=False)[:3]
    return "; ".join(f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}" for error in errors)


def _custom(model: type[AnyCustom]) -> Callable[[Body], AnyCustom]:
    def read(body: Body) -> AnyCustom:
        """Read a custom resource. Unknown fields are left out: a newer version may have them.

        A status that can't be read is left out too: a status may be lost at any time, and is written again.
        """
        metadata = dict(body["metadata"])
        metadata["labels"] = _ours(metadata.get("labels") or {})
        metadata["annotations"] = _ours(metadata.get("annotations") or {})
        known = {name: body[name] for name in ("apiVersion", "kind", "spec", "status") if body.get(name) is not None}
        known["metadata"] = metadata
        try:
            resource = model.model_validate(known, extra="ignore")
        except ValidationError as invalid:
            if any(error["loc"][:1] != ("status",) for error in invalid.errors()):
                raise
            del known["status"]
            resource = model.model_validate(known, extra="ignore")
        int(resource.metadata.resource_version)
        if not resource.metadata.uid:
            raise ValueError("metadata.uid is missing")
        _share_names_of_set_fields(resource)
        return resource

    return read


def _ours(entries: Mapping[str, str]) -> dict[str, str]:
    """The labels or annotations that decisions read. Others may be large, so they are dropped."""
    return {name: text for name, text in entries.items() if name in _READ and len(text) <= OUTCOMES_BYTES}


_READ = frozenset({JOB_LABEL, OUTCOMES_ANNOTATION})


def _share_names_of_set_fields(model: Model) -> None:
    """Let models with the same fields set share one set of names: pydantic's own were half of a job's memory."""
    names = model.__pydantic_fields_set__
    object.__setattr__(model, "__pydantic_fields_set__", _NAMES.setdefault(frozenset(names), names))
    for value in vars(model).values():
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Model):
                _share_names_of_set_fields(part)


_NAMES: WeakValueDictionary[frozenset[str], set[str]] = WeakValueDictionary()
"""Weak, as `_PARTS` is: what a deleted object said must not stay, or a tenant who writes many fills the memory."""


def _job(body: Body) -> FineTuneJob:
    """Read a job. Parts of its spec that equal another job's share one object: thousands of jobs differ in little."""
    job = _read_job(body)
    parts = {name: _held_once(part) for name, part in job.spec if isinstance(part, Model)}
    vars(job.spec).update(parts)  # in place: no reader has it yet, and a copy would have its own names of set fields
    return job


_read_job = _custom(FineTuneJob)


def _held_once(part: Model) -> Model:
    """The part that equals this one, as long as a job has it."""
    held = _PARTS.get(part)
    found = held() if held else None
    if found is None:
        _PARTS[part] = ref(part)
        return part
    return found


_PARTS: WeakKeyDictionary[Model, ref[Model]] = WeakKeyDictionary()


def _stage_job(body: Body) -> StageJobView:
    metadata = metadata_of("Job", body)
    spec, status = body.get("spec") or {}, body.get("status") or {}
    annotation = (body["metadata"].get("annotations") or {}).get(CLAIM_ANNOTATION)
    attempt = int(metadata["labels"][ATTEMPT_LABEL])
    if not 1 <= attempt <= HIGHEST_ATTEMPT:
        raise ValueError(f"label {ATTEMPT_LABEL}: there is no attempt {attempt}")
    if annotation and len(annotation) > _MOST_CLAIM_BYTES:
        raise ValueError(f"annotation {CLAIM_ANNOTATION} has {len(annotation)} characters: no claim is so large")
    complete = condition(status, "Complete", "True")
    failed = condition(status, "Failed", "True")
    ended = complete or failed
    return StageJobView(
        **metadata,
        stage=Stage(metadata["labels"][STAGE_LABEL]),
        attempt=attempt,
        claim=Claim.model_validate_json(annotation, extra="ignore") if annotation else None,
        suspended=bool(spec.get("suspend")),
        finished="Complete" if complete else "Failed" if failed else "",
        failure=f"{failed.get('reason', '')}: {failed.get('message', '')}" if failed else "",
        finished_at=moment(status.get("completionTime") or ended.get("lastTransitionTime")) if ended else None,
    )


def _slot(body: Body) -> SlotView:
    metadata = metadata_of("Deployment", body)
    annotations = body["metadata"].get("annotations") or {}
    replicas = (body.get("spec") or {}).get("replicas")
    index = index_of(metadata["labels"][SLOT_LABEL])
    if index is None:
        raise ValueError(f"label {SLOT_LABEL}: there is no replica {metadata['labels'][SLOT_LABEL]!r}")
    return SlotView(
        **metadata,
        engine=metadata["labels"][ENGINE_LABEL],
        index=index,
        size=1 if replicas is None else int(replicas),
        template=template_in(annotations),
        restarted_at=noted_moment(annotations, RESTARTED_AT_ANNOTATION),
    )


def _namespace(body: Body) -> NamespaceView:
    return NamespaceView(**metadata_of("Namespace", body))


def _budget(body: Body) -> BudgetView:
    selector, status = (body.get("spec") or {}).get("selector"), body.get("status") or {}
    counted = int(status.get("observedGeneration") or 0) >= int(body["metadata"].get("generation") or 0)
    try:
        pods = None if selector is None else LabelSelector.model_validate(selector)
    except ValidationError:  # of a newer Kubernetes: assume that it protects every pod of its namespace
        pods, counted = LabelSelector(), False
    return BudgetView(
        **metadata_of("PodDisruptionBudget", body),
        pods=pods,
        allowed=int(status.get("disruptionsAllowed") or 0) if counted else 0,
    )


def _node(body: Body) -> NodeView:
    spec, status = body.get("spec") or {}, body.get("status") or {}
    conditions: Iterable[Mapping[str, Any]] = status.get("conditions") or ()
    ready = next((found for found in conditions if found.get("type") == "Ready"), {})
    is_ready = ready.get("status") == "True"
    taints = (Taint(t["key"], t.get("value") or "", t["effect"]) for t in spec.get("taints") or ())
    return NodeView(
        **metadata_of("Node", body),
        allocatable=amounts(status.get("allocatable") or {}),
        ready=is_ready,
        not_ready_since=None if is_ready else moment(ready.get("lastTransitionTime")),
        cordoned=bool(spec.get("unschedulable")),
        taints=tuple(taints),
    )


def _claim(body: Body) -> VolumeClaimView:
    metadata = metadata_of("PersistentVolumeClaim", body)
    spec, status = body.get("spec") or {}, body.get("status") or {}
    return VolumeClaimView(
        **metadata,
        bound=status.get("phase") == "Bound",
        volume=spec.get("volumeName") or "",
        access_modes=tuple(str(mode) for mode in spec.get("accessModes") or ()),
        terminating=metadata["deleting"],
    )


def _volume(body: Body) -> VolumeView:
    affinity = ((body.get("spec") or {}).get("nodeAffinity") or {}).get("required") or {}
    terms = (_requirements(term) for term in affinity.get("nodeSelectorTerms") or ())
    return VolumeView(**metadata_of("PersistentVolume", body), node_terms=tuple(terms))


def _requirements(term: Mapping[str, Any]) -> tuple[NodeRequirement, ...]:
    """A term's requirements on labels and on fields. The only such field is metadata.name."""
    wanted: Iterable[Any] = (*(term.get("matchExpressions") or ()), *(term.get("matchFields") or ()))
    return tuple(NodeRequirement(r["key"], r["operator"], tuple(map(str, r.get("values") or ()))) for r in wanted)


_READERS: Mapping[str, Callable[[Body], Stored]] = {
    "FineTuneJob": _job,
    "InferenceEngine": _custom(InferenceEngine),
    "Adapter": _custom(Adapter),
    "GPUPool": _custom(GPUPool),
    "Namespace": _namespace,
    "Node": _node,
    "Pod": parse_pod,
    "Job": _stage_job,
    "Deployment": _slot,
    "PersistentVolumeClaim": _claim,
    "PersistentVolume": _volume,
    "PodDisruptionBudget": _budget,
    "ResourceSlice": parse_slice,
    "ResourceClaim": parse_device_claim,
}

WATCHED = tuple(_READERS)
"""The watched kinds. Not every cluster has all of them: see `Store.watched`."""


def stored_key(stored: Parsed) -> Key:
    """The object's key."""
    if isinstance(stored, View | Unreadable):
        return stored.key
    return Key(stored.KIND.kind, stored.metadata.namespace, stored.metadata.name)


def uid_of(stored: Parsed) -> str:
    """The object's uid, which no earlier or later object of the same name has."""
    return stored.uid if isinstance(stored, View | Unreadable) else stored.metadata.uid


def version_of(stored: Parsed) -> int:
    """The object's resourceVersion as a number. Kubernetes promises since 1.35 that they can be compared (KEP-5504)."""
    if isinstance(stored, View | Unreadable):
        return stored.resource_version
    return int(stored.metadata.resource_version)
