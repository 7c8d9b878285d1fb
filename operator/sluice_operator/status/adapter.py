"""On which replicas does an Adapter answer? This follows from the reports of its engine's agents."""

from datetime import datetime

from sluice_api.adapter import Adapter, AdapterReplica, AdapterStatus
from sluice_api.conditions import READY, condition
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.reasons import Reason
from sluice_api.reports import LoadedAdapter, LoadedState
from sluice_api.sources import volume_path
from sluice_operator.facts.slots import pod_of, serves
from sluice_operator.observe.world import World, engine_key, existing


def adapter_status(world: World, adapter: Adapter, now: datetime) -> AdapterStatus:
    """An Adapter's status. Ready is True when every ready replica answers with the version of the spec."""
    engine = world.engines.get(engine_key(adapter.metadata.namespace, adapter.spec.engine))
    replicas = _replicas(world, engine, adapter) if engine else ()
    status, reason, message = _readiness(engine, adapter, replicas)
    loaded = [replica for replica in replicas if replica.state is LoadedState.LOADED]
    versions = {replica.version for replica in loaded}
    return AdapterStatus(
        observed_generation=adapter.metadata.generation,
        conditions=(
            condition(
                adapter.status.conditions,
                READY,
                "True" if status else "False",
                reason,
                message,
                adapter.metadata.generation,
                now,
            ),
        ),
        version=versions.pop() if len(versions) == 1 else "",
        loaded=f"{len(loaded)}/{len(replicas)}",
        replicas=replicas,
    )


def _replicas(world: World, engine: InferenceEngine, adapter: Adapter) -> tuple[AdapterReplica, ...]:
    """The adapter's state on each ready replica: loading where the agent has not reported on this generation yet."""
    found = []
    for index in sorted(existing(world, engine)):
        pod = pod_of(world, engine, index)
        if pod is None or not serves(pod):
            continue
        reported = world.reports.get(pod.uid)
        mine = _about(reported.report.adapters, adapter) if reported else None
        found.append(
            AdapterReplica(slot=index, state=mine.state, version=mine.version, reason=mine.reason, message=mine.message)
            if mine
            else AdapterReplica(slot=index, state=LoadedState.LOADING)
        )
    return tuple(found)


def _about(adapters: tuple[LoadedAdapter, ...], adapter: Adapter) -> LoadedAdapter | None:
    return next(
        (a for a in adapters if a.name == adapter.metadata.name and a.generation >= adapter.metadata.generation), None
    )


def _readiness(
    engine: InferenceEngine | None, adapter: Adapter, replicas: tuple[AdapterReplica, ...]
) -> tuple[bool, Reason, str]:
    name = adapter.spec.engine
    if engine is None:
        namespace = adapter.metadata.namespace
        return (
            False,
            Reason.ENGINE_NOT_FOUND,
            f"spec.engine: there is no InferenceEngine {name} in namespace {namespace}.",
        )
    if engine.spec.lora is None:
        return False, Reason.ENGINE_TAKES_NO_ADAPTERS, f"Engine {name} has no spec.lora; set it to serve adapters."
    source = volume_path(adapter.spec.source.uri)
    if source and source.claim not in engine.spec.lora.volume_claims:
        return (
            False,
            Reason.ADAPTER_SOURCE_NOT_MOUNTED,
            f"spec.source.uri: engine {name} does not mount volume claim {source.claim}. Add that to its "
            "lora.volumeClaims.",
        )
    if not replicas:
        return False, Reason.NO_READY_REPLICA, f"Engine {name} has no ready replica."
    for replica in replicas:
        if replica.state is LoadedState.FAILED:
            return (
                False,
                Reason.known(replica.reason) or Reason.LOAD_FAILED,
                f"Replica {replica.slot}: {replica.message}",
            )
    loading = [replica for replica in replicas if replica.state is LoadedState.LOADING]
    if loading:
        return False, Reason.LOADING, f"{len(loading)} of {len(replicas)} ready replicas are loading it."
    return (
        True,
        Reason.LOADED,
        f"{len(replicas)} of {len(replicas)} ready replicas answer to model {adapter.metadata.name}.",
    )
