"""Kubernetes' label selector, as its documentation describes it."""

import pytest

from sluice_api.selectors import NamespaceSelector

TEAM = {"team": "ml", "gpus": "yes"}


@pytest.mark.parametrize(
    ("rule", "selector", "expected"),
    [
        ("an empty one selects everything", {}, True),
        ("all labels must match", {"matchLabels": {"team": "ml", "gpus": "yes"}}, True),
        ("one that differs is enough", {"matchLabels": {"team": "ml", "gpus": "no"}}, False),
        ("In", {"matchExpressions": [{"key": "team", "operator": "In", "values": ["web", "ml"]}]}, True),
        ("absent is in nothing", {"matchExpressions": [{"key": "x", "operator": "In", "values": ["y"]}]}, False),
        ("NotIn", {"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["ml"]}]}, False),
        ("absent is not in", {"matchExpressions": [{"key": "x", "operator": "NotIn", "values": ["y"]}]}, True),
        ("Exists", {"matchExpressions": [{"key": "gpus", "operator": "Exists"}]}, True),
        ("DoesNotExist", {"matchExpressions": [{"key": "gpus", "operator": "DoesNotExist"}]}, False),
        ("both kinds must hold",
         {"matchLabels": {"team": "ml"}, "matchExpressions": [{"key": "x", "operator": "Exists"}]}, False),
    ],
)  # fmt: skip
def test_namespace_selector_matches_labels(rule: str, selector: dict[str, object], expected: bool) -> None:
    assert NamespaceSelector.model_validate(selector).selects(TEAM) is expected, rule
