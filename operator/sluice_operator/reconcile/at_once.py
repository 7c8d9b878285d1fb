"""Several writes of one decision, of which none needs another."""

import asyncio
from collections.abc import Awaitable, Iterable

from sluice_operator.cluster.errors import NotLeading

AT_ONCE = 16
"""More would only wait at the API server, in front of other clients' requests."""


async def side_by_side(writes: Iterable[Awaitable[None]]) -> list[Exception | None]:
    """Do them all, some at a time; how each failed, if it did, in their order.

    None is left to run behind the caller's back: the next decision begins from what all of them have done.

    Raises:
        NotLeading: one found that this process may not write any more, so the others' failures are nobody's business.
    """
    places = asyncio.Semaphore(AT_ONCE)

    async def one(write: Awaitable[None]) -> None:
        async with places:
            await write

    ended = await asyncio.gather(*(one(write) for write in writes), return_exceptions=True)
    for failure in ended:
        if isinstance(failure, NotLeading) or not isinstance(failure, Exception | None):
            raise failure
    return [failure for failure in ended if not isinstance(failure, BaseException) or isinstance(failure, Exception)]
