"""Reads full lists of a kind into the store."""

import asyncio
import logging
import os
from ipaddress import ip_address

from sluice_operator.cluster.client import Api, Body
from sluice_operator.cluster.errors import ApiError
from sluice_operator.cluster.kinds import KINDS, path_of
from sluice_operator.observe.parse import Parsed, Stored, parse, uid_of, version_of
from sluice_operator.observe.parse_devices import DEVICES
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Address, Key

logger = logging.getLogger(__name__)

_API_SERVERS = Key("EndpointSlice", "default", "kubernetes")
"""The API server writes this object about itself."""
PAGE = 10
"""Objects in a page. A pod of 1.5 MB in the API server may be six times as long as JSON, and reading that takes three
times its length: 60 such pods of one user, in pages of 100, took 1.5 GiB at each start, more than the operator has."""


async def refresh(api: Api, store: Store, kind: str) -> None:
    """Make the store agree with a full list of a kind.

    The list is requested without a resourceVersion, so it shows everything that was written before (a quorum read).
    """
    newest_before = store.newest(kind)
    objects, version = await _pages(api, store, kind, newest_before)
    store.replace(kind, objects, version, newest_before)


async def refresh_all(api: Api, store: Store) -> None:
    """Make the store agree with a full list of every watched kind, all requested after the call."""
    for kind in store.watched:
        await refresh(api, store, kind)
    await look_for_api_servers(api, store)


async def look_for_api_servers(api: Api, store: Store) -> bool:
    """Store the addresses at which pods reach the API server. Returns whether they have changed.

    They are the Service's address and those behind it: some networks check a packet before its address is translated,
    most after. A host name, which AKS may give to pods, is left out: a NetworkPolicy can't have one.
    """
    found = []
    if service := os.environ.get("KUBERNETES_SERVICE_HOST"):
        found.append(Address(service, int(os.environ["KUBERNETES_SERVICE_PORT"])))
    try:
        slice_ = await api.request("GET", path_of(_API_SERVERS))
    except ApiError as error:
        if error.status != 404:  # it does not exist if the API server listens on the loopback only
            raise
    else:
        ips = [ip for endpoint in slice_.get("endpoints") or () for ip in endpoint["addresses"]]
        found += [Address(ip, port["port"]) for port in slice_.get("ports") or () for ip in ips]
    addresses = tuple(sorted({address for address in found if _is_numeric(address.ip)}))
    if addresses == store.findings.api_servers:
        return False
    store.findings.api_servers = addresses
    return True


def _is_numeric(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


async def _pages(api: Api, store: Store, kind: str, newest_before: int) -> tuple[list[Parsed], int]:
    """All objects of a kind, of one moment, and the list's resourceVersion. A list that expires begins again."""
    while True:
        try:
            return await _one_list(api, store, kind, newest_before)
        except ApiError as error:
            if error.status != 410:
                raise
            logger.info("a list took too long and begins anew", extra={"kind": kind})


async def _one_list(api: Api, store: Store, kind: str, newest_before: int) -> tuple[list[Parsed], int]:
    where = KINDS[kind]
    query = {"limit": str(PAGE)}
    if where.selector:
        query["labelSelector"] = where.selector
    objects: list[Parsed] = []
    while True:
        page: Body = await api.request("GET", where.collection(), query=query)
        version = int(page["metadata"]["resourceVersion"])
        same_history = version >= newest_before
        objects += [(same_history and _held_so(store, kind, item)) or parse(kind, item) for item in page["items"]]
        if not page["metadata"].get("continue"):
            return objects, version
        query["continue"] = page["metadata"]["continue"]


def _held_so(store: Store, kind: str, item: Body) -> Stored | None:
    """The held object, if the store holds this very state of it: then it need not be parsed and kept twice."""
    metadata = item.get("metadata") or {}
    held = store.held(Key(kind, metadata.get("namespace") or "", metadata.get("name") or ""))
    state = metadata.get("uid"), metadata.get("resourceVersion")
    return held if held is not None and (uid_of(held), str(version_of(held))) == state else None


async def look_for_dra(api: Api, store: Store) -> None:
    """Find out whether the cluster has the kinds of DRA: ResourceSlices and ResourceClaims."""
    where = [KINDS[kind] for kind in DEVICES]
    try:
        served = await api.request("GET", f"/apis/{where[0].api_version}")
    except ApiError as error:
        if error.status != 404:
            raise
        store.serves_dra = False
        return
    store.serves_dra = {kind.plural for kind in where} <= {resource["name"] for resource in served["resources"]}


async def until_installed(api: Api, store: Store) -> None:
    """Wait until the API server serves our kinds: kopf looks for them only once."""
    while True:
        try:
            await look_for_dra(api, store)
            break
        except ApiError as error:
            logger.warning("the API server does not say what it serves yet", extra={"error": str(error)})
            await asyncio.sleep(2)
    for kind in store.watched:
        while True:
            try:
                await api.request("GET", KINDS[kind].collection(), query={"limit": "1"})
                break
            except ApiError as error:
                logger.warning("a kind cannot be listed yet", extra={"kind": kind, "error": str(error)})
                await asyncio.sleep(2)
