"""Several writes of one decision, of which none needs another."""

import asyncio
from collections.abc import Awaitable, Iterable

AT_ONCE = 16
"""More would only wait at the API server, in front of other clients' requests."""


async def side_by_side(writes: Iterable[Awaitable[None]]) -> None:
    """Do them all, some at a time; then raise the first failure, if there was one.

    None is left to run behind the caller's back: the next decision begins from what all of them have done.
    """
    places = asyncio.Semaphore(AT_ONCE)

    async def one(write: Awaitable[None]) -> None:
        async with places:
            await write

    ended = await asyncio.gather(*(one(write) for write in writes), return_exceptions=True)
    for failure in ended:
        if isinstance(failure, BaseException):
            raise failure
