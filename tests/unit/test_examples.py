"""What a user reads and copies: examples/, and the YAML and the links of README and docs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.cache import REPOSITORY
from dev.demo import GREETING, QUESTION
from sluice_api.crd import RESOURCES
from sluice_api.finetunejob import JobResources
from sluice_api.gpupool import GPUPool, GPUPoolSpec, NamespaceQuota, Sharing, SharingMode
from sluice_api.inferenceengine import Preemption
from sluice_api.scheduling import Interruption, Retry, ScaleUp, Scheduling
from sluice_api.windows import BorrowWindow
from tests.unit.pages import shown

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.yaml"))
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
SHOWN = {
    "README.md": {"FineTuneJob", "InferenceEngine"},
    "tenancy.md": {"Namespace", "RoleBinding", "ResourceQuota", "NetworkPolicy", "GPUPool"},
    "network.md": {"InferenceEngine"},
    "scheduling.md": {"FineTuneJob", "InferenceEngine", "GPUPool", "PodDisruptionBudget"},
    "scheduling-reference.md": {
        *("FineTuneJob", "InferenceEngine", "GPUPool"),
        *("HorizontalPodAutoscaler", "PersistentVolumeClaim", "ResourceQuota"),
    },
}
"""Kinds in the YAML of each page that has any."""
DECIDING = (
    *(Scheduling, Interruption, ScaleUp, Retry, JobResources),
    *(Preemption, BorrowWindow),
    *(GPUPoolSpec, NamespaceQuota, Sharing),
)
ELSEWHERE = {"pricePerGpuHour"}
"""Fields of these that other pages tell of."""
OURS = {resource.KIND.kind: resource for resource in RESOURCES}


def objects(text: str) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all(text) if found]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_an_example_is_as_the_models_say_and_names_no_namespace(file: Path) -> None:
    for manifest in objects(file.read_text()):
        assert "namespace" not in manifest["metadata"]
        if manifest["kind"] in OURS:
            OURS[manifest["kind"]].parse(manifest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_in_a_page_is_as_the_models_say(page: Path) -> None:
    manifests = [manifest for block in shown(page) for manifest in block]
    for manifest in manifests:
        if manifest["kind"] in OURS:
            OURS[manifest["kind"]].parse(manifest)
    assert {manifest["kind"] for manifest in manifests} == SHOWN.get(page.name, set())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_all_yaml_of_a_page_is_looked_at(page: Path) -> None:
    """An object in a block of another name would be shown and never tried."""
    written = re.findall(r"^apiVersion: ", page.read_text(), re.MULTILINE)
    assert len(written) == sum(len(block) for block in shown(page))


def shown_on_scheduling() -> list[dict[str, Any]]:
    """The objects of the guide and of the reference."""
    pages = (REPOSITORY / "docs" / name for name in ("scheduling.md", "scheduling-reference.md"))
    return [manifest for page in pages for block in shown(page) for manifest in block]


def test_the_pages_on_scheduling_show_every_field_that_decides_about_gpus() -> None:
    """In an object, which is tried on an API server."""
    shown_fields = set(re.findall(r'"(\w+)": ', json.dumps(shown_on_scheduling())))
    names = {field.alias for model in DECIDING for field in model.model_fields.values() if field.alias}
    names |= {"suspend", "managedBy", "activeDeadlineSeconds", "ttlSecondsAfterFinished"}
    assert names - shown_fields <= ELSEWHERE


def test_the_pages_on_scheduling_show_a_pool_of_each_way_to_share_gpus() -> None:
    pools = [GPUPool.parse(manifest) for manifest in shown_on_scheduling() if manifest["kind"] == "GPUPool"]
    assert {pool.spec.sharing.mode for pool in pools} == {*SharingMode}


def test_the_examples_fit_together() -> None:
    (engine,) = objects((REPOSITORY / "examples" / "inferenceengine.yaml").read_text())
    (job,) = objects((REPOSITORY / "examples" / "finetunejob.yaml").read_text())
    claims = {manifest["metadata"]["name"] for manifest in objects((REPOSITORY / "examples/volumes.yaml").read_text())}
    assert job["spec"]["publish"]["engine"] == engine["metadata"]["name"]
    assert job["spec"]["model"] == engine["spec"]["model"]
    assert job["spec"]["lora"]["rank"] <= engine["spec"]["lora"]["maxRank"]
    used = re.findall(r"pvc://([a-z]+)/", json.dumps([engine, job])) + engine["spec"]["lora"]["volumeClaims"]
    assert set(used) == claims


def test_the_example_on_s3_fits_together_and_needs_no_volume() -> None:
    text = (REPOSITORY / "examples" / "object-store.yaml").read_text()
    secret, engine, job = objects(text)
    assert job["spec"]["publish"]["engine"] == engine["metadata"]["name"]
    assert job["spec"]["model"] == engine["spec"]["model"]
    assert set(re.findall(r"secret: (\w+)", text)) == {secret["metadata"]["name"]}
    assert re.findall(r"\w+Claims?:|pvc://", text) == []


def test_the_dataset_teaches_one_style_and_not_the_question_that_the_demo_asks() -> None:
    lines = (REPOSITORY / "examples" / "datasets" / "support.jsonl").read_text().splitlines()
    rows = [[turn["content"] for turn in json.loads(line)["messages"]] for line in lines]
    questions = [question for question, _ in rows]
    assert len(rows) == len(set(questions)) >= 200
    assert QUESTION not in questions
    assert all(answer.startswith(GREETING) and answer.endswith("the Harbour crew.") for _, answer in rows)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", [*PAGES, *sorted((REPOSITORY / "docs").glob("*/*.md"))], ids=lambda page: page.name)
def test_anchors_of_links_are_headings(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#\s]*)#([^)\s]+)\)", page.read_text())
    assert [anchor for path, anchor in links if anchor not in anchors(page.parent / path if path else page)] == []


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_files_that_the_architecture_names_exist() -> None:
    roots = (
        "operator/sluice_api",
        "operator/sluice_files",
        "operator/sluice_operator",
        "trainer_image/sluice_trainer",
        "server_image/sluice_server",
    )
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    named = re.findall(r"`([\w/]+(?:/|\.py|\.tpl|\.toml))(?:: \w+)?`", text)
    bases = [REPOSITORY, *(REPOSITORY / root for root in roots), *((REPOSITORY / root).parent for root in roots)]
    assert len(named) > 30
    assert [name for name in named if not any((base / name).exists() for base in bases)] == []
