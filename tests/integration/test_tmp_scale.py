import asyncio, time, aiohttp
from tests.integration.progress_scene import JOB_SPEC
from tests.integration.test_leaders import _ready, _writes
import pytest
@pytest.mark.timeout(550)
async def test_scale(operator, kube, namespace):
    N=5000
    path = f"/apis/sluice.dev/v1alpha1/namespaces/{namespace}/finetunejobs"
    t=time.time()
    sem=asyncio.Semaphore(32)
    async def mk(i):
        async with sem:
            await kube.call("POST", path, {"apiVersion":"sluice.dev/v1alpha1","kind":"FineTuneJob","metadata":{"name":f"j{i}"},"spec":{**JOB_SPEC,"suspend":True}})
    await asyncio.gather(*(mk(i) for i in range(N)))
    print("created", time.time()-t)
    def rss(p):
        return [l for l in open(f"/proc/{p}/status") if l.startswith(("VmRSS","VmHWM"))], open(f"/proc/{p}/stat").read().split()[13:15]
    t=time.time(); one = operator("a", lease_seconds=15); await one.leads(); print("leads", time.time()-t)
    await _ready(one.metrics_port); print("ready", time.time()-t, rss(one.process.pid))
    last=-1
    while True:
        await asyncio.sleep(3)
        w = await _writes(one.metrics_port)
        print(round(time.time()-t), w, rss(one.process.pid))
        if w==last and w>0: break
        last=w
    one.end()
    t=time.time(); two = operator("b"); await two.leads(); print("2: leads", time.time()-t)
    await _ready(two.metrics_port); print("2: ready", time.time()-t, rss(two.process.pid))
    await asyncio.sleep(15); print("2: writes", await _writes(two.metrics_port), rss(two.process.pid))
    print([e for e in two.events() if e.get("level")!="info"][:3])
