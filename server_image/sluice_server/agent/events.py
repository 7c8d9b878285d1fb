"""Waiting for an event of asyncio with a limit of time."""

import asyncio


async def is_set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait until the event is set, and return True; False when it is not set within `seconds`.

    asyncio.wait_for of Python 3.11 would lose a cancellation that comes together with the event (python/cpython#86296):
    an agent that got SIGTERM at that moment went on.
    """
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
