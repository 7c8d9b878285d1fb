"""CustomResourceDefinitions and reference pages as files."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sluice_api import crd, docs
from sluice_api.finetunejob import UNCHANGED
from sluice_api.meta import EXPERIMENTAL
from sluice_api.reasons import Reason
from sluice_api.resource import Resource
from sluice_api.schema import RULES, fields_of
from tests.integration.refusals import REFUSED, UNCHANGEABLE

LAST_APPLIED_LIMIT = 262_144
"""A client-side apply keeps the whole object in an annotation of at most so many bytes."""
every_kind = pytest.mark.parametrize("kind", crd.RESOURCES, ids=lambda kind: kind.KIND.kind)


@every_kind
def test_crd_fits_a_client_side_apply(kind: type[Resource]) -> None:
    assert len(json.dumps(crd.crd(kind))) < LAST_APPLIED_LIMIT / 3


@every_kind
def test_columns_show_fields_that_exist(kind: type[Resource]) -> None:
    schema = crd.resource_schema(kind)
    paths = {path for path, _ in fields_of(schema, "")}
    for column in kind.KIND.columns:
        if not column.path.startswith((".metadata", ".status.conditions")):
            assert column.path in paths, column.name


def test_a_decimal_string_survives_a_yaml_reader_that_knows_floats(tmp_path: Path) -> None:
    assert crd.main([str(tmp_path)]) == 0
    assert 'default: "2e-4"' in (tmp_path / "finetunejobs.yaml").read_text()


def test_crd_files_are_written_to_each_directory(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    assert crd.main([str(first), str(second)]) == 0
    names = sorted(path.name for path in first.iterdir())
    assert names == ["adapters.yaml", "finetunejobs.yaml", "gpupools.yaml", "inferenceengines.yaml"]
    for name in names:
        assert (first / name).read_text() == (second / name).read_text()
        assert yaml.safe_load((first / name).read_text())["kind"] == "CustomResourceDefinition"


def test_experimental_fields_are_marked() -> None:
    """One that is not listed here was marked, or lost its mark, by accident."""
    marked = {
        path
        for kind in crd.RESOURCES
        for path, field in fields_of(crd.resource_schema(kind), "")
        if EXPERIMENTAL in field.get("description", "")
    }
    assert marked == {
        *(".spec.scheduling.policy", ".spec.scheduling.share", ".status.allocation.beside"),
        *(".spec.preemption.policy", ".spec.preemption.sleepLevel"),
        *(".spec.sharing", ".spec.sharing.mode", ".spec.sharing.replicas", ".spec.sharing.deviceClass"),
    }
    assert docs.api_page().count("| `Sleep` |") == docs.api_page().count("| `Shared` |") == 1


@pytest.mark.parametrize("generator", [crd, docs])
def test_check_shows_stale_generated_files(generator: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generator.main([str(tmp_path)]) == 0
    assert generator.main([str(tmp_path), "--check"]) == 0
    stale = next(tmp_path.iterdir())
    stale.write_text("old\n")
    assert generator.main([str(tmp_path), "--check"]) == 1
    told = capsys.readouterr().out
    assert "-old" in told
    assert stale.name in told
    assert "make generate" in told
    assert stale.read_text() == "old\n"


def test_every_reason_is_explained_once_and_in_a_group() -> None:
    page = docs.reasons_page()
    for reason in Reason:
        assert page.count(f"| `{reason.value}` |") == 1
    assert next(iter(Reason)) in docs.REASON_GROUPS


@every_kind
def test_every_field_is_in_the_reference(kind: type[Resource]) -> None:
    page = docs.api_page()
    schema = crd.resource_schema(kind)
    for part in ("spec", "status"):
        for path, _ in fields_of(schema["properties"][part], part):
            if not path.endswith(("[]", "{}")):
                assert f"| `{path}` |" in page


def test_table_rows_have_as_many_cells_as_their_head() -> None:
    for page in (docs.api_page(), docs.reasons_page()):
        for table in page.split("\n\n"):
            rows = [row for row in table.splitlines() if row.startswith("|")]
            assert len({row.replace("\\|", "").count("|") for row in rows}) <= 1, rows[:1]


def test_every_validation_rule_has_a_refused_example() -> None:
    """A rule that no row of the integration tests' tables breaks has no proof."""
    told = [(kind, expected) for kind, _, _, expected in REFUSED]
    changes = {(kind, expected.removesuffix(": *")) for kind, _, _, expected in UNCHANGEABLE}
    unproven = []
    for resource in crd.RESOURCES:
        kind, schema = resource.KIND.kind, crd.resource_schema(resource)
        for path, field in (("", schema), *fields_of(schema, "")):
            for rule in field.get(RULES, ()):
                place = f"{path}{rule.get('fieldPath', '')}".lstrip(".")
                shown = any(part.split(" * ")[-1] in rule["message"] for _, part in told)
                if not shown and (kind, place) not in changes:
                    unproven.append((kind, place, rule["message"]))
    assert unproven == [
        # Shown by tests of their own: they need a status, and a `publish` that is there.
        ("FineTuneJob", "spec.scheduling", "cannot be changed while the job holds GPUs: suspend it first"),
        ("FineTuneJob", "spec.publish.engine", UNCHANGED),
        ("FineTuneJob", "spec.publish.name", UNCHANGED),
    ]
