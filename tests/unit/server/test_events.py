"""Waiting for an event: for so long, and never past a cancellation."""

import asyncio

import pytest

from sluice_server.agent.events import is_set_within


async def test_event_is_set_within() -> None:
    event = asyncio.Event()
    assert not await is_set_within(event, 0.01)
    asyncio.get_running_loop().call_later(0.01, event.set)
    assert await is_set_within(event, 10)


@pytest.mark.parametrize("ticks", range(4))
async def test_cancellation_together_with_the_event_is_not_lost(ticks: int) -> None:
    """Seen in a test: wait_for lost the cancellation of an agent whose work ended then, and the agent went on."""
    event = asyncio.Event()

    async def control_loop() -> None:
        while True:
            await is_set_within(event, 3600)
            event.clear()

    loop = asyncio.create_task(control_loop())
    await asyncio.sleep(0.01)
    event.set()
    for _ in range(ticks):
        await asyncio.sleep(0)
    loop.cancel()
    await asyncio.wait([loop], timeout=1)
    assert loop.cancelled()
