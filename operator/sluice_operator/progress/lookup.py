"""The pod that a token names, and what owns it: from the store, or asked for once where the watch is behind."""

from collections import OrderedDict
from collections.abc import Awaitable
from http import HTTPStatus
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiClient, ApiException, AppsV1Api, CoreV1Api

from sluice_operator.observe.parse_pod import parse_pod
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key, Owner, PodView
from sluice_operator.progress.refusal import Refusal, Refused
from sluice_operator.progress.tokens import BoundPod

MOST_DEPLOYMENTS = 20_000


class Lookup:
    """Finds pods and the Deployments that own them."""

    def __init__(self, store: Store, api: ApiClient) -> None:
        """Reads the store; asks the API server for what the store does not have."""
        self._store = store
        self._api = api
        self._deployments: OrderedDict[str, Owner | None] = OrderedDict()
        """Controller of a pod's ReplicaSet by the pod's uid. It never changes while the pod keeps its owner."""

    async def pod(self, bound: BoundPod) -> PodView:
        """The pod that a token is bound to.

        Raises:
            Refused: it is gone, or another one has its name.
        """
        seen = self._store.world().pods.get(Key("Pod", bound.namespace, bound.name))
        if seen is not None and seen.uid == bound.uid:
            return seen
        raw = await _get(CoreV1Api(self._api).read_namespaced_pod(bound.name, bound.namespace))
        if raw is None or raw.metadata.uid != bound.uid:
            raise Refused(Refusal.DELETED_POD, f"pod {bound.name} with uid {bound.uid} is gone")
        return parse_pod(self._api.sanitize_for_serialization(raw))

    async def deployment_of(self, pod: PodView) -> Owner | None:
        """The Deployment of a pod's ReplicaSet, if that ReplicaSet counts the pod as its own."""
        if pod.uid not in self._deployments:
            self._deployments[pod.uid] = await self._asked_deployment_of(pod)
            while len(self._deployments) > MOST_DEPLOYMENTS:
                self._deployments.popitem(last=False)
        return self._deployments[pod.uid]

    async def _asked_deployment_of(self, pod: PodView) -> Owner | None:
        if pod.owner is None or pod.owner.kind != "ReplicaSet":
            return None
        replica_set = await _get(AppsV1Api(self._api).read_namespaced_replica_set(pod.owner.name, pod.key.namespace))
        if replica_set is None or replica_set.metadata.uid != pod.owner.uid:
            return None
        selector = replica_set.spec.selector.match_labels or {}
        if not selector or any(pod.labels.get(label) != value for label, value in selector.items()):
            return None
        owners = replica_set.metadata.owner_references or ()
        controller = next((owner for owner in owners if owner.controller and owner.kind == "Deployment"), None)
        return Owner("Deployment", controller.name, controller.uid) if controller else None


async def _get(answer: Awaitable[Any]) -> Any:
    """The object, or None where there is none.

    Raises:
        Refused: the API server can't say now.
    """
    try:
        return await answer
    except ApiException as error:
        if error.status == HTTPStatus.NOT_FOUND:
            return None
        raise Refused(Refusal.UNAVAILABLE, "the API server does not answer now; try again", retry_after=2) from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Refused(Refusal.UNAVAILABLE, "the API server does not answer now; try again", retry_after=2) from error
