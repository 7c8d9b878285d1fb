"""vLLM's sleep mode as the agent meets it, without a GPU.

Read in vLLM 0.32.0, of the files entrypoints/serve/dev/{sleep,rpc}/api_router.py, v1/engine/core.py, v1/executor/
abstract.py, v1/worker/{gpu,cpu}_worker.py and device_allocator/cumem.py; tests/contract asserts what a CPU shows of it:

- The routes are there with VLLM_SERVER_DEV_MODE=1 only (entrypoints/launchers/api_server/routers.py); without, 404.
- `POST /sleep?level=1&mode=abort`, these being the defaults; levels 0, 1, 2, modes abort, wait, keep. 200 with
  {"status":"sleeping","level":1}, whatever was freed: on a CPU, or without --enable-sleep-mode, nothing is.
- The scheduler is paused first: `abort` ends what runs (finish_reason abort), `wait` lets it end. What comes later is
  queued and answered after the wake, in every mode. Nothing is refused. The prefix cache is cleared from level 1 on.
- `POST /wake_up[?tags=weights&tags=kv_cache]`: 200 with {"status":"awake","tags":null}; "sleeping" while a tag is left.
  Scheduling goes on when none is. A tag that does not sleep, and a vLLM that is awake, change nothing.
- `GET /is_sleeping`: {"is_sleeping":true} while scheduling is paused or a tag is left.
- `POST /collective_rpc {"method":"reload_weights"}`: {"results":[null]}. Level 2 drops the weights; before they are
  reloaded it answers nonsense. Adapters' weights go too (vllm#39934): 0.32 forgets them with the reload and loads them
  anew at their next use, earlier ones did not.
- `GET /health` is 200 throughout; 503 when the engine is dead, as after a CUDA out-of-memory at waking.
"""

import asyncio
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from sluice_server.control import DeviceMemory

GIB = 2**30
BASE_WEIGHTS = "weights of the base model"
TAGS = {"weights", "kv_cache"}


class Reply(NamedTuple):
    """What a route answers, and what is written down of the call."""

    status: int
    body: Any
    call: tuple[str, ...] = ()


class FakeSleep:
    """The part of a fake vLLM that sleeps. It has one GPU of 80 GiB, of which it takes 72, and leaves 2 when asleep."""

    def __init__(self) -> None:
        self.dev_mode = True
        self.leaves = 2 * GIB
        self.trainers = 0
        """Bytes that somebody else has of the GPU."""
        self.forgets = False
        """It wakes badly: the base model answers something else (vllm#53888)."""
        self.dead = False
        self.level = 0
        self.sleeping: set[str] = set()
        self.spoiled: set[str] = set()
        """Names whose weights are not what they were."""
        self.paused = False
        self._resumed = asyncio.Event()
        self._abort = asyncio.Event()
        self.running = 0
        """Requests that are being computed."""
        self._idle = asyncio.Event()
        self._idle.set()

    def memory(self) -> tuple[DeviceMemory, ...]:
        """As NVML would say."""
        mine = 72 * GIB if not self.sleeping else self.leaves
        return (DeviceMemory(used=mine + self.trainers, total=80 * GIB),)

    def is_spoiled(self, name: str) -> bool:
        """Whether a model answers nonsense."""
        return bool(self.spoiled & {name, BASE_WEIGHTS})

    async def turn(self, hold: asyncio.Event, name: str) -> bool:
        """Wait until a request has been computed; returns whether it was aborted."""
        while self.paused:
            await self._resumed.wait()
        self.running += 1
        self._idle.clear()
        try:
            ends = [asyncio.create_task(hold.wait()), asyncio.create_task(self._abort.wait())]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                end.cancel()
            return self._abort.is_set() and not hold.is_set()
        finally:
            self.running -= 1
            if not self.running:
                self._idle.set()

    async def route(self, method: str, path: str, query: bytes, request: dict[str, Any]) -> Reply | None:
        """One of the development routes; None where there is none of that name."""
        asked = parse_qs(query.decode())
        routes = ("/sleep", "/wake_up", "/is_sleeping", "/collective_rpc")
        if not self.dev_mode or path not in routes:
            return None
        if self.dead:
            return Reply(500, {"error": {"message": "EngineCore encountered an issue.", "code": 500}})
        match method, path:
            case "POST", "/sleep":
                return await self._sleep(asked)
            case "POST", "/wake_up":
                return self._wake(asked.get("tags"))
            case "GET", "/is_sleeping":
                return Reply(200, {"is_sleeping": self.paused or bool(self.sleeping)})
            case "POST", "/collective_rpc":
                if "method" not in request:
                    return Reply(400, {"error": {"message": "Missing 'method' in request body", "code": 400}})
                if request["method"] == "reload_weights":
                    self.spoiled.discard(BASE_WEIGHTS)
                return Reply(200, {"results": [None]}, (request["method"],))
        return Reply(405, {"detail": "Method Not Allowed"})

    async def _sleep(self, asked: dict[str, list[str]]) -> Reply:
        level, mode = asked.get("level", ["1"])[0], asked.get("mode", ["abort"])[0]
        if level not in ("0", "1", "2") or mode not in ("abort", "wait", "keep"):
            return Reply(400, {"error": {"message": "Validation error", "code": 400}})
        self.paused = True
        self._resumed.clear()
        if mode == "abort":
            self._abort.set()
        if mode != "keep":
            await self._idle.wait()
        self._abort.clear()
        if int(level) and not self.sleeping:
            self.sleeping, self.level = {*TAGS}, int(level)
        return Reply(200, {"status": "sleeping", "level": int(level)}, (f"sleep {level} {mode}",))

    def _wake(self, tags: list[str] | None) -> Reply:
        wanted = TAGS if tags is None else {*tags}
        call = (f"wake {' '.join(tags or ['all'])}",)
        if self.sleeping and self.trainers:
            self.dead = True
            return Reply(500, {"error": {"message": "CUDA Error: out of memory", "code": 500}}, call)
        if wanted <= self.sleeping or tags is None:
            if "weights" in wanted & self.sleeping and self.level > 1:
                self.spoiled.add(BASE_WEIGHTS)
            if "weights" in wanted & self.sleeping and self.forgets:
                self.spoiled.add("chat")
            self.sleeping -= wanted
        if not self.sleeping:
            self.paused = False
            self._resumed.set()
        return Reply(200, {"status": "sleeping" if self.sleeping else "awake", "tags": tags}, call)
