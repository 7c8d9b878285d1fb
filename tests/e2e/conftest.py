"""The stage of all journeys: a cluster, Sluice installed by its chart, and one team with one engine of two replicas.

Each journey starts with `team.fresh()`: no job, the engine whole. So each can run alone and in any order. In two
workers of pytest two journeys run side by side, each with a stage of its own (stage.py); those that are marked `alone`
act on Sluice itself, and have the cluster to themselves.

SLUICE_E2E_REUSE=1 takes Sluice and the engine as they are, which saves two minutes while a journey is written.
"""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dev import models
from dev.cache import cache_folder, locked
from dev.cluster import provider, tools
from tests.e2e import objects
from tests.e2e.kubectl import Kubectl, Refused
from tests.e2e.observer import Observed, Observer
from tests.e2e.sluice import SYSTEM, Sluice
from tests.e2e.stage import GPU, GPUS, NAMESPACES, NEIGHBOUR, POOL, RUN, TEAM
from tests.e2e.team import Team

HERE = Path(__file__).parent
LONGEST_JOURNEY = 1800


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is in this folder needs a real node, and its time. It comes first, by its numbers; `alone` at its end."""
    journeys = [item for item in items if item.path.is_relative_to(HERE)]
    for item in journeys:
        item.add_marker(pytest.mark.e2e)
        item.add_marker(pytest.mark.timeout(LONGEST_JOURNEY))
    alone = [item for item in journeys if item.get_closest_marker("alone")]
    order = sorted(journeys, key=lambda item: (item in alone, _number(item)))
    items[:] = [*order, *(item for item in items if item not in journeys)]


def _number(item: pytest.Item) -> int:
    """Of a journey: test_7_bad_input.py is the seventh."""
    return int(item.path.name.split("_")[1])


@pytest.fixture(autouse=True)
def _beside_others(request: pytest.FixtureRequest) -> Iterator[None]:
    """Wait for those who have the cluster to themselves; if that is us, for all others."""
    with locked("journeys", shared=request.node.get_closest_marker("alone") is None):
        yield


@pytest.fixture(scope="session")
def kubectl() -> Kubectl:
    """The cluster, up, with GPUs of the tests' own."""
    provider.up(None)
    found = Kubectl(tools.tools()["kubectl"], provider.kubeconfig())
    for node in found.read("nodes")["items"]:
        amounts = f'{{"capacity":{{"{GPU}":"{GPUS}"}},"allocatable":{{"{GPU}":"{GPUS}"}}}}'
        found("patch", "node", node["metadata"]["name"], "--subresource=status", f'--patch={{"status":{amounts}}}')
        break
    return found


@pytest.fixture(scope="session")
def sluice(kubectl: Kubectl) -> Sluice:
    """Sluice, newly installed by the first worker that wants it."""
    found = Sluice(kubectl, tools.tools()["helm"])
    installed = cache_folder() / "locks" / "journeys.installed"
    with locked("journeys-install"):
        if not RUN or not installed.exists() or installed.read_text() != RUN:
            _install(found)
            installed.write_text(RUN)
    return found


def _install(sluice: Sluice) -> None:
    """On a cluster without anything of earlier journeys."""
    if not os.environ.get("SLUICE_E2E_REUSE"):
        sluice.uninstall()
        left = [name for name in sluice.kubectl("get", LEFT_BEHIND, "-o", "name").split() if "/e2e-" in name]
        if left:
            sluice.kubectl("delete", *left)
    sluice.install()


LEFT_BEHIND = "namespace,persistentvolume,validatingadmissionpolicybinding,validatingadmissionpolicy"
"""Also by journeys that were cut off. A PersistentVolume remembers its claim's uid, and refuses a new namespace's."""


@pytest.fixture(scope="session")
def proxy(kubectl: Kubectl) -> Iterator[str]:
    """Address of `kubectl proxy`: a way into the cluster on any provider, to Services and to single pods."""
    with subprocess.Popen(kubectl.command("proxy", "--port=0"), stdout=subprocess.PIPE, text=True) as process:
        said = process.stdout.readline() if process.stdout else ""
        assert said, "`kubectl proxy` ended at once"
        yield f"http://{said.split()[-1]}"
        process.terminate()


@pytest.fixture(scope="session")
def settled(kubectl: Kubectl, sluice: Sluice, proxy: str) -> Iterator[Team]:
    """The team, with its model, its dataset, its engine."""
    models.models()
    found = Team(kubectl, proxy, TEAM)
    _settle(found)
    kubectl.apply(objects.pool())
    found.apply(objects.engine())
    yield found
    if not os.environ.get("SLUICE_E2E_REUSE"):
        left = (*(f"namespace/{name}" for name in NAMESPACES), f"gpupool/{POOL}")
        kubectl("delete", *left, "--ignore-not-found", "--wait=false")


@pytest.fixture
def team(settled: Team) -> Team:
    """The team, with nothing going on and a whole engine."""
    settled.fresh()
    return settled


@pytest.fixture
def neighbour(team: Team) -> Team:
    """Another team, without an engine."""
    found = team.renamed(NEIGHBOUR)
    _settle(found)
    found.delete("ftj", "--all")
    return found


@pytest.fixture
def observed(team: Team, kubectl: Kubectl) -> Iterator[Observed]:
    """Everything that happens during the journey. What must never happen is checked at its end."""
    with Observer(kubectl).watching() as found:
        yield found
    assert found.most_gpus() <= GPUS, "more GPUs were in use than there are"


@dataclass
class Undisturbed:
    """Digests of the adapters that jobs make when nothing disturbs them, by their steps."""

    digests: dict[int, str] = field(default_factory=dict)

    def of(self, team: Team, steps: int = objects.STEPS) -> str:
        """The digest; the first time a job is run for it, if no journey had one."""
        if steps not in self.digests:
            name = f"undisturbed-{steps}"
            team.apply(objects.job(name, steps=steps))
            self.digests[steps] = team.finished(name).digest
            team.whole()
        return self.digests[steps]


@pytest.fixture(scope="session")
def undisturbed() -> Undisturbed:
    """Filled by the first journey in which an ordinary job ends undisturbed."""
    return Undisturbed()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A journey that fails shows what there was at that moment."""
    report = yield
    if call.excinfo is not None and call.when in {"setup", "call"} and "kubectl" in getattr(item, "funcargs", {}):
        there = item.funcargs  # type: ignore[attr-defined]
        name = there["team"].name if "team" in there else TEAM
        said = ((title, _said(there["kubectl"], words.format(team=name))) for title, words in SCENE.items())
        report.sections.extend(said)  # type: ignore[attr-defined]
    return report


SCENE = {
    "resources": "get ftj,ie,ad,gpool,jobs,pods --all-namespaces -o wide",
    "statuses": "get ftj,ie,ad --namespace={team} -o yaml",
    "events": "get events --namespace={team} --sort-by=.lastTimestamp",
    "trainers": "logs --namespace={team} --selector=sluice.dev/stage --prefix --tail=15",
    "replicas": "logs --namespace={team} --selector=sluice.dev/engine --all-containers --prefix --tail=15",
    "operator": f"logs --namespace={SYSTEM} --selector=app.kubernetes.io/name=sluice --prefix --tail=40",
}
MOST_LINES = 150


def _said(kubectl: Kubectl, words: str) -> str:
    try:
        lines = kubectl(*words.split(), patience=30).splitlines()
    except (Refused, subprocess.TimeoutExpired) as refused:
        return str(refused)
    return "\n".join(lines[-MOST_LINES:])


def _settle(team: Team) -> None:
    team.settle()
    models.place("tiny", team.volume("models"))
    objects.write_rows(team.volume("datasets") / objects.DATASET)
