"""What the chart says of what is in a cluster already, before it changes anything."""

import pytest

from dev.cluster.control_plane import ControlPlane
from tests.integration.kubectl import PRIORITIES, Kubectl
from tests.unit.chart.helm import CHART, helm

pytestmark = pytest.mark.integration

SET = "priorityClasses.training"
KEPT = ",".join(f"priorityClasses.{name.removeprefix('sluice-')}.value={value}" for name, value in PRIORITIES.items())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        pytest.param(KEPT, "", id="as it is there"),
        pytest.param(f"{KEPT},{SET}.value=2000", "sluice-training", id="another value"),
        pytest.param(f"{KEPT},{SET}.value=2000,{SET}.name=mine", "", id="and name"),
        pytest.param("priorityClasses.create=false", "", id="classes of others"),
    ],
)
def test_a_priority_class_of_another_value_is_named_with_the_remedy(
    control_plane: ControlPlane, values: str, said: str
) -> None:
    """The API server says no more than that it may not be changed, after half of an upgrade is done.

    Seen elsewhere: onyx-dot-app/onyx#13562, kubernetes#99205.
    """
    admin, names = Kubectl(control_plane.kubeconfig), [f"priorityclass/{name}" for name in PRIORITIES]
    ours = ("meta.helm.sh/release-name=sluice", "meta.helm.sh/release-namespace=sluice-system")
    admin.must("annotate", "--overwrite", *names, *ours)  # what a former release has kept
    admin.must("label", "--overwrite", *names, "app.kubernetes.io/managed-by=Helm")
    words = ("--namespace", "sluice-system", "--dry-run=server", f"--kubeconfig={control_plane.kubeconfig}")
    rendered = helm("template", "sluice", CHART, *words, "--set", f"crds.install=false,{values}")
    assert (rendered.returncode != 0) is bool(said), rendered.stderr
    assert said in rendered.stderr
    assert ("is there with the value 1000" in rendered.stderr) is bool(said)
    assert (f"{SET}.name" in rendered.stderr) is bool(said)
