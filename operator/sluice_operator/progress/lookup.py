"""The pod that a token names, and what owns it: from the store, or asked for once where the watch is behind."""

import re
from collections import OrderedDict
from http import HTTPStatus

from sluice_operator.cluster.client import Api, Body
from sluice_operator.cluster.errors import ApiError
from sluice_operator.cluster.kinds import path_of
from sluice_operator.observe.parse_pod import parse_pod
from sluice_operator.observe.raw import metadata_of
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key, Owner, PodView
from sluice_operator.progress.refusal import Refusal, Refused
from sluice_operator.progress.tokens import BoundPod

MOST_DEPLOYMENTS = 20_000

_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?")
"""An object's. A pod's owner is whatever its maker wrote there: it goes into a path only if it can be one."""


class Lookup:
    """Finds pods and the Deployments that own them."""

    def __init__(self, store: Store, api: Api) -> None:
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
        key = Key("Pod", bound.namespace, bound.name)
        seen = self._store.world().pods.get(key)
        if seen is not None and seen.uid == bound.uid:
            return seen
        raw = await self._get(key)
        if raw is None or raw["metadata"]["uid"] != bound.uid:
            raise Refused(Refusal.DELETED_POD, f"pod {bound.name} with uid {bound.uid} is gone")
        return parse_pod(raw)

    async def deployment_of(self, pod: PodView) -> Owner | None:
        """The Deployment of a pod's ReplicaSet, if that ReplicaSet counts the pod as its own."""
        if pod.uid not in self._deployments:
            self._deployments[pod.uid] = await self._asked_deployment_of(pod)
            while len(self._deployments) > MOST_DEPLOYMENTS:
                self._deployments.popitem(last=False)
        return self._deployments[pod.uid]

    async def _asked_deployment_of(self, pod: PodView) -> Owner | None:
        if pod.owner is None or pod.owner.kind != "ReplicaSet" or not _NAME.fullmatch(pod.owner.name):
            return None
        replica_set = await self._get(Key("ReplicaSet", pod.key.namespace, pod.owner.name))
        if replica_set is None or replica_set["metadata"]["uid"] != pod.owner.uid:
            return None
        selector = replica_set["spec"]["selector"].get("matchLabels") or {}
        if not selector or any(pod.labels.get(label) != value for label, value in selector.items()):
            return None
        owner = metadata_of("ReplicaSet", replica_set)["owner"]
        return owner if owner and owner.kind == "Deployment" else None

    async def _get(self, key: Key) -> Body | None:
        """The object, or None where there is none.

        Raises:
            Refused: the API server can't say now.
        """
        try:
            return await self._api.request("GET", path_of(key), attempts=1)
        except ApiError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            message = "the API server does not answer now; try again"
            raise Refused(Refusal.UNAVAILABLE, message, retry_after=2) from error
