"""Full lists of a kind, brought into the store."""

import asyncio
import logging

from sluice_operator.cluster.client import Api, Body
from sluice_operator.cluster.errors import ApiError
from sluice_operator.cluster.kinds import KINDS
from sluice_operator.observe.parse import KINDS as WATCHED
from sluice_operator.observe.parse import Parsed, parse
from sluice_operator.observe.store import Store

logger = logging.getLogger(__name__)

PAGE = 500


async def refresh(api: Api, store: Store, kind: str) -> None:
    """Make the store agree with a list of all objects of a kind.

    The list is asked for without a resourceVersion: it shows everything that was written before (a quorum read).
    """
    newest_before = store.newest(kind)
    objects, version = await _pages(api, kind)
    store.replace(kind, objects, version, newest_before)


async def refresh_all(api: Api, store: Store) -> None:
    """Make the store agree with a list of every watched kind, all begun after the call."""
    for kind in WATCHED:
        await refresh(api, store, kind)


async def _pages(api: Api, kind: str) -> tuple[list[Parsed], int]:
    """Every page is of one moment, that of the first. A list that took too long begins anew."""
    while True:
        try:
            return await _one_list(api, kind)
        except ApiError as error:
            if error.status != 410:
                raise
            logger.info("a list took too long and begins anew", extra={"kind": kind})


async def _one_list(api: Api, kind: str) -> tuple[list[Parsed], int]:
    where = KINDS[kind]
    query = {"limit": str(PAGE)}
    if where.selector:
        query["labelSelector"] = where.selector
    objects: list[Parsed] = []
    while True:
        page: Body = await api.request("GET", where.collection(), query=query)
        objects += [parse(kind, item) for item in page["items"]]
        if not page["metadata"].get("continue"):
            return objects, int(page["metadata"]["resourceVersion"])
        query["continue"] = page["metadata"]["continue"]


async def until_installed(api: Api) -> None:
    """Wait until the API server knows our kinds: kopf looks for them only once."""
    for kind in WATCHED:
        while True:
            try:
                await api.request("GET", KINDS[kind].collection(), query={"limit": "1"})
                break
            except ApiError as error:
                logger.warning("a kind cannot be listed yet", extra={"kind": kind, "error": str(error)})
                await asyncio.sleep(2)
