"""Read pods: what they ask of a node, and what their containers report."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from sluice_api.meta import (
    BOUND_AT_ANNOTATION,
    ENGINE_LABEL,
    JOB_LABEL,
    PLACEHOLDER_LABEL,
    SCALE_UP_LABEL,
    TEMPLATE_ANNOTATION,
)
from sluice_api.pods import MODEL_CONTAINER
from sluice_api.quantity import amounts
from sluice_operator.observe.raw import Body, ViewMetadata, condition, metadata_of, moment, noted_moment
from sluice_operator.observe.views import PodView, Resources, Termination

_MAIN = ("trainer", "vllm")
"""The main container: of a stage's pod, and of an engine's pod."""
_ORDINARY = frozenset({"ContainerCreating", "PodInitializing"})
"""Waiting reasons that every container has at first."""
_LONGEST = 1000
"""The most characters of a message that are kept."""
_POD_LEVEL = ("cpu", "memory")
"""Resources for which a request of the whole pod replaces the containers' (hugepages too, which nothing here needs)."""


def parse_pod(body: Body) -> PodView:
    """Read a pod. Of a pod that is not ours it keeps little more than what the pod takes from its node."""
    metadata = metadata_of("Pod", body)
    annotations = body["metadata"].get("annotations") or {}
    spec, status = body.get("spec") or {}, body.get("status") or {}
    ended = status.get("phase") in ("Succeeded", "Failed")
    if not is_ours(metadata["labels"]):
        bare: ViewMetadata = {**metadata, "labels": {}, "owner": None}
        return PodView(
            **bare,
            requests=effective_requests(spec),
            node=spec.get("nodeName") or "",
            ended=ended,
            volume_claims=_volume_claims(body),
            daemon_set=_daemon_set(body["metadata"]),
        )
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    main: Mapping[str, Any] = next((c for c in containers if c.get("name") in _MAIN), {})
    fetching: Mapping[str, Any] = next((c for c in containers if c.get("name") == MODEL_CONTAINER), {})
    waiting_reason, waiting_message = _waiting(containers)
    unscheduled = condition(status, "PodScheduled", "False")
    return PodView(
        **metadata,
        requests=effective_requests(spec),
        node=spec.get("nodeName") or "",
        nominated_node=status.get("nominatedNodeName") or "",
        gates=tuple(gate["name"] for gate in spec.get("schedulingGates") or ()),
        bound_at=noted_moment(annotations, BOUND_AT_ANNOTATION),
        ended=ended,
        running=bool((main.get("state") or {}).get("running")),
        ready=bool(condition(status, "Ready", "True")),
        goes_at_once=_goes_at_once(body["metadata"], spec),
        in_time=_in_time(body["metadata"], spec),
        waiting_reason=waiting_reason,
        waiting_message=waiting_message,
        unschedulable=unscheduled.get("message") or "" if unscheduled.get("reason") == "Unschedulable" else "",
        disruption=_state_message(condition(status, "DisruptionTarget", "True")),
        failure=_state_message(status) if ended else _last_error(main) if main.get("name") == "vllm" else "",
        started=any(map(_has_run, containers)),
        volume_claims=_volume_claims(body),
        template=template_in(annotations),
        termination=_termination(main),
        fetches_model=bool((fetching.get("state") or {}).get("running")),
        fetch_failure=_last_failure(fetching),
    )


def _daemon_set(metadata: Mapping[str, Any]) -> str:
    owners = metadata.get("ownerReferences") or ()
    return next((str(owner.get("uid") or "") for owner in owners if owner.get("kind") == "DaemonSet"), "")


def _goes_at_once(metadata: Mapping[str, Any], spec: Body) -> bool:
    """Whether the pod is gone as soon as it is deleted. A deletion may give it more time than its spec."""
    given = metadata.get("deletionGracePeriodSeconds")
    grace = spec.get("terminationGracePeriodSeconds") if given is None else given
    return grace == 0 and not metadata.get("finalizers")


def _in_time(metadata: Mapping[str, Any], spec: Body) -> int | None:
    """The grace period of the pod's spec if the pod was deleted with a longer one; None otherwise."""
    usual, given = spec.get("terminationGracePeriodSeconds"), metadata.get("deletionGracePeriodSeconds")
    return int(usual) if usual is not None and given is not None and int(given) > int(usual) else None


def template_in(annotations: Mapping[str, Any]) -> str:
    """The digest of a pod template in an annotation. Of a longer text, which is not ours, only the beginning."""
    return str(annotations.get(TEMPLATE_ANNOTATION, ""))[:64]


def is_ours(labels: Mapping[str, str]) -> bool:
    """Whether a pod belongs to a stage or a slot, or is a placeholder or a scale-up pod, by its labels."""
    return any(label in labels for label in (JOB_LABEL, ENGINE_LABEL, PLACEHOLDER_LABEL, SCALE_UP_LABEL))


def effective_requests(spec: Body) -> Resources:
    """What a pod takes from its node, as kube-scheduler counts it.

    It is the larger of two: what runs together, and what any step of the start needs. Sidecars (init containers that
    are restarted) run along with all that starts after them. A pod-level request replaces the containers'.
    """
    running = total(_requests(c) for c in spec.get("containers") or ())
    sidecars: dict[str, int] = {}
    peak: dict[str, int] = {}
    for container in spec.get("initContainers") or ():
        if container.get("restartPolicy") == "Always":
            sidecars = total((sidecars, _requests(container)))
            peak = _larger(peak, sidecars)
        else:
            peak = _larger(peak, total((sidecars, _requests(container))))
    together = _larger(peak, total((running, sidecars)))
    whole = _requests(spec)
    together.update({name: whole[name] for name in _POD_LEVEL if name in whole})
    return total((together, amounts(dict(spec.get("overhead") or {}))))


def total(parts: Iterable[Resources]) -> dict[str, int]:
    """The sum of several requests."""
    added: dict[str, int] = {}
    for part in parts:
        for name, value in part.items():
            added[name] = added.get(name, 0) + value
    return added


def _larger(one: Resources, other: Resources) -> dict[str, int]:
    return {name: max(one.get(name, 0), other.get(name, 0)) for name in {**one, **other}}


def _requests(container: Body) -> dict[str, int]:
    return amounts(dict((container.get("resources") or {}).get("requests") or {}))


def _volume_claims(body: Body) -> tuple[str, ...]:
    """The volume claims that a pod mounts. A generic ephemeral volume's claim is named after the pod and the volume."""
    pod = body["metadata"]["name"]
    found = []
    for volume in (body.get("spec") or {}).get("volumes") or ():
        if volume.get("persistentVolumeClaim"):
            found.append(str(volume["persistentVolumeClaim"]["claimName"]))
        elif volume.get("ephemeral"):
            found.append(f"{pod}-{volume['name']}")
    return tuple(found)


def _waiting(containers: Iterable[Mapping[str, Any]]) -> tuple[str, str]:
    """Reason and message of the first container that waits for something unusual; both empty if none does."""
    for container in containers:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") and waiting["reason"] not in _ORDINARY:
            return waiting["reason"], waiting.get("message") or ""
    return "", ""


def _state_message(state: Mapping[str, Any]) -> str:
    """Reason and message of a status or a condition, as one text; empty if it has neither."""
    return ": ".join(str(state[part])[:_LONGEST] for part in ("reason", "message") if state.get(part))


def _has_run(container: Mapping[str, Any]) -> bool:
    states = [container.get("state") or {}, container.get("lastState") or {}]
    return any(state.get("running") or state.get("terminated") for state in states)


def _last_failure(container: Mapping[str, Any], longest: int | None = _LONGEST) -> str:
    """The last words of a container that has failed, and has not succeeded since; empty for any other."""
    for state in (container.get("state") or {}, container.get("lastState") or {}):
        if ended := state.get("terminated"):
            words = ended.get("message") or ended.get("reason") or f"exit code {ended.get('exitCode')}"
            return str(words)[:longest] if ended.get("exitCode") else ""
    return ""


_ERROR = re.compile(r"\b[A-Za-z_.]*(?:Error|Exception): .*")
_NO_CAUSE = "Engine core initialization failed"
"""vLLM's server says so when its engine has ended; what the engine said stands before that."""


def _last_error(vllm: Mapping[str, Any]) -> str:
    """Why vLLM has ended last, a line of its log; empty if it has not failed."""
    lines = [line.strip() for line in _last_failure(vllm, longest=None).splitlines() if line.strip()]
    errors = [found[0] for line in lines if (found := _ERROR.search(line)) and _NO_CAUSE not in line]
    return next(iter([*errors[-1:], *lines[-1:]]), "")[:_LONGEST]


def _termination(main: Mapping[str, Any]) -> Termination | None:
    ended = (main.get("state") or {}).get("terminated")
    if not ended:
        return None
    return Termination(
        exit_code=int(ended["exitCode"]),
        reason=ended.get("reason") or "",
        message=ended.get("message") or "",
        finished_at=moment(ended.get("finishedAt")),
    )
