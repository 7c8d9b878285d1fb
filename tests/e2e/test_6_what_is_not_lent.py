"""J6: engines that do not lend, and jobs for which lending would be in vain: nobody is disturbed for them.

Seen to fail when lendTo was ignored, and, under the quota, when replicas drained before the claim's pod existed.
"""

from tests.e2e import objects
from tests.e2e.kubectl import Object
from tests.e2e.observer import Observed
from tests.e2e.stage import GPU, GPUS
from tests.e2e.team import Team

FLOOR = objects.lending(minReplicas=2)
NEVER = objects.lending(policy="Never")


def test_job_waits_until_the_engine_may_lend(team: Team, neighbour: Team, observed: Observed) -> None:
    """It says what keeps the engine from lending, at each change; the last change lets it start, and nothing before."""
    team.patch("ie", objects.ENGINE, preemption=NEVER)
    neighbour.apply(objects.job("guest"))
    waiting = neighbour.wait_job("guest", lambda job: job.summary == "EngineNeverLends", "waits for the policy")
    assert objects.ENGINE in waiting.message

    team.patch("ie", objects.ENGINE, preemption=objects.lending())
    waiting = neighbour.wait_job("guest", lambda job: job.summary == "EngineLendsElsewhere", "is not served here")
    assert objects.ENGINE in waiting.message

    team.patch("ie", objects.ENGINE, preemption=objects.lending(lendTo="Anywhere", minReplicas=2))
    waiting = neighbour.wait_job("guest", lambda job: job.summary == "EngineAtFloor", "waits for the floor")
    assert "2 of 2" in waiting.message
    assert undisturbed(observed, team)

    team.patch("ie", objects.ENGINE, preemption=objects.lending(lendTo="Anywhere"))
    neighbour.wait_job("guest", lambda job: job.is_true("Admitted"), "starts")
    neighbour.delete("ftj", "guest")
    team.whole()
    assert observed.lent(objects.ENGINE, team.name) == [0, 1, 0]


def test_resource_quota_that_refuses_the_pod_disturbs_no_engine(team: Team, observed: Observed) -> None:
    """A quota that refuses the training pod is named, and nothing is drained for it; without it the job starts."""
    team.apply(quota())
    team.wait("resourcequotas", "no-more-gpus", lambda q: "hard" in q.get("status", {}), "the quota is in force")
    team.apply(objects.job("refused"))
    refused = team.wait_job("refused", lambda job: job.summary == "QuotaExceeded", "is refused")
    assert "exceeded quota: no-more-gpus" in refused.message
    team.wait_all("jobs", lambda jobs: not jobs, "the claim is given up", seconds=120, job="refused", stage="Train")
    assert undisturbed(observed, team)


def test_node_with_too_little_cpu_or_memory_disturbs_no_engine(team: Team, observed: Observed) -> None:
    """The node could take the pod if it were empty. It is not, and no GPU would change that.

    Seen to fail when the reason was looked for with all replicas gone, those below the floor too: the job was told
    that the engine could lend no more, which was wrong.
    """
    (node, *_) = team.kubectl.read("nodes")["items"]
    nearly_all = int(node["status"]["allocatable"]["memory"].removesuffix("Ki")) - LESS_THAN_A_REPLICA_KI
    large = {"large-1": {"memory": f"{nearly_all}Ki"}, "large-2": {"cpu": "1900m"}}
    team.apply(*(objects.job(name, resources=objects.resources(**asked)) for name, asked in large.items()))
    for name, asked in large.items():
        waiting = team.wait_job(name, lambda job: job.is_true("Prepared") and job.summary != "Pending", "waits")
        assert all(resource in waiting.message for resource in asked)
        assert not observed.trainers(name)
    assert undisturbed(observed, team)


LESS_THAN_A_REPLICA_KI = 2 * 2**20
"""Two GiB: a replica has three."""


def undisturbed(observed: Observed, team: Team) -> bool:
    """Whether no replica was ever told to drain, nor was there ever one less ready."""
    serving = observed.slot_states(objects.ENGINE, team.name) == {"Serving"}
    return serving and observed.fewest_ready(objects.ENGINE) == 2


def quota() -> Object:
    """As many GPUs as the engine has."""
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "no-more-gpus"},
        "spec": {"hard": {f"requests.{GPU}": str(GPUS)}},
    }
