"""What the README tells its reader to type on a cluster, typed as it is printed.

It needs the README's objects, an engine `chat` and a job `support-tone` that has published its adapter: those that the
journey before has left, or new ones.
"""

import json
import re
from pathlib import Path

from dev.cluster import tools
from dev.demo import NAMESPACE
from tests.e2e import objects
from tests.e2e.kubectl import Kubectl
from tests.e2e.readme import as_user, beside, say, typed
from tests.e2e.sluice import Sluice
from tests.e2e.team import Team

JOB = "support-tone"


def test_commands_of_the_readme_do_what_it_says(
    settled: Team, kubectl: Kubectl, sluice: Sluice, tmp_path: Path
) -> None:
    _has_published(settled)
    user = as_user(kubectl, tools.tools()["helm"], settled.name, tmp_path)

    (installs,) = typed("helm upgrade")
    assert "deployed" in say("helm list --namespace sluice-system", user)
    assert "STATUS: pending-upgrade" in say(f"{installs} --dry-run=server", user)
    (tests,) = typed("helm test")
    assert re.search(r"Phase:\s+Succeeded", say(tests, user))

    here = [command for command in typed("kubectl") if not command.endswith("&")]
    said = {command: say(command.replace(NAMESPACE, settled.name), user) for command in here}
    assert re.search(rf"^{JOB} .* Succeeded ", said["kubectl get ftj -w"], re.MULTILINE)
    assert "Adapter" in said[f"kubectl describe ftj {JOB}"]
    assert {"finetunejob", "inferenceengine", "adapter"} & set(
        re.findall(r"^(\w+)\.sluice", said["kubectl get ie,ad,gpool"], re.MULTILINE)
    )
    assert "policy" in said["kubectl explain ftj.spec.scheduling"]
    (explained,) = (lines for command, lines in said.items() if "sluice_operator.explain" in command)
    assert explained.startswith(f"{settled.name}/{JOB}: 1 GPU of pool ")

    (forwards,) = typed("kubectl port-forward")
    (asks,) = typed("curl")
    with beside(forwards, user) as listening:
        assert listening.startswith("Forwarding from")
        answer = json.loads(say(asks, user))
    assert answer["model"] == JOB
    assert answer["choices"][0]["message"]["content"]


def _has_published(team: Team) -> None:
    """The adapter of the README's job is served by the engine."""
    if team.get("ftj", JOB) is None:
        team.fresh()
        team.apply(objects.job(JOB, steps=20, publish=JOB))
    team.finished(JOB)
    team.whole()
    team.wait("ad", JOB, lambda ad: ad["status"].get("loaded") == "2/2", "both replicas have the adapter")
