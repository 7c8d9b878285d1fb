"""J7: what a user can get wrong. Each message names the field or the line, and the remedy; no GPU is ever taken.

Seen to fail, in the row of the missing claim, when claims were not looked for before Prepare.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.e2e import objects
from tests.e2e.kubectl import Kubectl, Object, Refused
from tests.e2e.observer import Observed, Observer
from tests.e2e.sluice import Sluice
from tests.e2e.team import LONG, JobState, Team


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("unknown-field", {"learningRate": "1e-4"}, ['unknown field "spec.learningRate"']),
        ("wrong-type", {"lora": {"rank": "eight"}}, ["spec.lora.rank", '"string"']),
        ("wrong-address", {"dataset": {"uri": "/datasets/rows.jsonl"}}, ["spec.dataset.uri", "pvc://claim/path"]),
    ],
)
def test_bad_input_is_refused_by_the_api_server(team: Team, name: str, change: Object, said: list[str]) -> None:
    """Before anything exists."""
    with pytest.raises(Refused) as refused:
        team.apply(objects.job(name, **change))
    assert all(part in str(refused.value) for part in said), refused.value


@dataclass(frozen=True)
class Wrong:
    """A job with one thing wrong."""

    name: str
    reason: str
    says: tuple[str, ...]
    """Where, and the remedy."""
    spec: Object = field(default_factory=dict)
    publish: str | None = None
    mendable: bool = False
    """Whether the job waits until others have mended it; otherwise it has failed."""


def resources(**changes: object) -> Object:
    """An ordinary job's resources, changed."""
    return {"resources": objects.resources(**changes)}


def dataset(file: str) -> Object:
    """Rows of another file."""
    return {"dataset": {"uri": f"pvc://datasets/{file}"}}


TABLE = (
    Wrong(
        "rank",
        "RankTooLarge",
        ("spec.lora.rank: 32", "maxRank 16", "Lower the rank"),
        {"lora": {"rank": 32}},
        publish="rank-too-large",
        mendable=True,
    ),
    Wrong(
        "no-claim",
        "VolumeClaimNotFound",
        ("PersistentVolumeClaim nowhere", "Create it"),
        {"dataset": {"uri": "pvc://nowhere/rows.jsonl"}},
        mendable=True,
    ),
    Wrong("gpus", "ExceedsEveryNode", ("spec.resources.gpus: 3", "at most 2"), resources(gpus=3), mendable=True),
    Wrong(
        "memory", "ExceedsEveryNode", ("spec.resources.memory", "Lower it"), resources(memory="900Gi"), mendable=True
    ),
    Wrong(
        "unseen",
        "AdapterSourceNotMounted",
        ("spec.output.uri", "claim datasets", "lora.volumeClaims"),
        {"output": {"uri": "pvc://datasets/out"}},
        publish="unseen",
        mendable=True,
    ),
    Wrong("no-file", "DatasetNotFound", ("dataset.uri", "nothing.jsonl"), dataset("nothing.jsonl")),
    Wrong(
        "empty",
        "DatasetEmpty",
        ("empty.jsonl is an empty file", "Write one JSON object a line"),
        dataset("empty.jsonl"),
    ),
    Wrong("line-17", "DatasetInvalid", ("line 17", "JSON", "onBadRow"), dataset("line-17.jsonl")),
    Wrong("mixed", "DatasetInvalid", ("line 3", "line 1", "Write all rows in one format"), dataset("mixed.jsonl")),
    Wrong(
        "no-model", "ModelInvalid", ("model.uri", "config.json is missing"), {"model": {"uri": "pvc://models/notes"}}
    ),
    Wrong("no-folder", "ModelNotFound", ("model.uri", "nobody", "tiny"), {"model": {"uri": "pvc://models/nobody"}}),
    Wrong("read-only", "OutputNotWritable", ("output.uri", "65532"), {"output": {"uri": "pvc://adapters/locked/out"}}),
)


@pytest.fixture(scope="module")
def all_along(settled: Team, kubectl: Kubectl) -> Iterator[Observed]:
    """All wrong jobs are applied at once, so that their CPU pods run side by side; what happens since then."""
    settled.fresh()
    _write_files(settled)
    with Observer(kubectl).watching() as observed:
        settled.apply(*(objects.job(f"wrong-{w.name}", publish=w.publish, **w.spec) for w in TABLE))
        yield observed
        settled.delete("ftj", "--all")


@pytest.mark.parametrize("wrong", TABLE, ids=lambda wrong: wrong.name)
def test_bad_input_is_reported_by_the_job(settled: Team, all_along: Observed, wrong: Wrong) -> None:
    """Where it is, and what to do. It never has a claim."""
    name = f"wrong-{wrong.name}"
    found = JobState(settled.wait("ftj", name, lambda job: is_told(JobState(job)), "it says what is wrong", LONG))
    assert found.summary == wrong.reason, found
    assert all(part in found.message for part in wrong.says), found
    assert found.failed != wrong.mendable
    assert not all_along.all("jobs", job=name, stage="Train")


@pytest.mark.alone
def test_image_not_pulled_is_reported_and_ends_at_the_deadline(team: Team, sluice: Sluice, observed: Observed) -> None:
    """Named while it waits, and the end at its deadline."""
    try:
        sluice.install("images.trainer.tag=forgotten", "timing.stageStartDeadlineSeconds=10")
        team.apply(objects.job("no-image"))
        found = JobState(
            team.wait("ftj", "no-image", lambda job: JobState(job).summary == "ImageNotPulled", "it names the image")
        )
        assert "sluice-trainer:forgotten" in found.message
        failed = JobState(team.wait("ftj", "no-image", lambda job: JobState(job).failed, "it has failed"))
        assert failed.summary == "ImageNotPulled"
        team.wait_all("jobs", lambda jobs: not jobs, "its Job is gone", job="no-image")
    finally:
        sluice.install()
    assert not observed.trainers("no-image")
    assert observed.slot_states(objects.ENGINE, team.name) == {"Serving"}


def is_told(job: JobState) -> bool:
    """Whether the operator knows that something is wrong, rather than being on its way to it."""
    return job.failed or (job.summary not in {"", "Pending", "Preparing"})


def _write_files(team: Team) -> None:
    rows = team.volume("datasets")
    good = [json.dumps(objects.row(number)) for number in range(20)]
    (rows / "empty.jsonl").write_text("")
    (rows / "line-17.jsonl").write_text("\n".join([*good[:16], '{"messages": [', *good[17:]]))
    other = json.dumps({"instruction": "Where is it?", "output": "At sea."})
    (rows / "mixed.jsonl").write_text("\n".join([*good[:2], other, *good[3:]]))
    notes = team.volume("models") / "notes"
    notes.mkdir(exist_ok=True)
    (notes / "README.md").write_text("No model here.\n")
    locked = team.volume("adapters") / "locked"
    locked.mkdir(exist_ok=True)
    locked.chmod(0o755)  # and it is root's
