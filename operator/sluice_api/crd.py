"""CustomResourceDefinitions from the models.

python3 -m sluice_api.crd DIRECTORY... [--check]
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from sluice_api import generated
from sluice_api.adapter import Adapter
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.meta import CATEGORY, GROUP, VERSION
from sluice_api.resource import Column, Resource
from sluice_api.schema import Schema, require_bounds, require_descriptions, structural, without_defaults

RESOURCES: tuple[type[Resource], ...] = (FineTuneJob, InferenceEngine, Adapter, GPUPool)

_API_VERSION = {
    "type": "string",
    "description": "The versioned schema of this object.",
}
_KIND = {
    "type": "string",
    "description": "The kind of this object.",
}


def crd(resource: type[Resource]) -> dict[str, Any]:
    """The CustomResourceDefinition of a kind, as the API server takes it."""
    kind = resource.KIND
    version: dict[str, Any] = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [_column(column) for column in kind.columns],
        "subresources": {"status": {}} | ({"scale": kind.scale} if kind.scale else {}),
        "schema": {"openAPIV3Schema": resource_schema(resource)},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.kind.lower(),
                "shortNames": list(kind.short_names),
                "categories": [CATEGORY],
            },
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "versions": [version],
        },
    }


def resource_schema(resource: type[Resource]) -> Schema:
    """The schema of a whole object.

    Raises:
        SchemaError: a field has no description, or one of the spec has no bound.
    """
    schema = structural(resource)
    fields = schema["properties"]
    schema["required"] = [name for name in schema["required"] if name != "metadata"]
    if not schema["required"]:
        del schema["required"]
    fields["apiVersion"], fields["kind"], fields["metadata"] = _API_VERSION, _KIND, {"type": "object"}
    fields["status"] = without_defaults(fields["status"])
    for part in ("spec", "status"):
        require_descriptions(fields[part], f"{resource.KIND.kind}.{part}")
    require_bounds(fields["spec"], f"{resource.KIND.kind}.spec")
    return schema


def files(directories: list[Path]) -> dict[Path, str]:
    """One YAML file for each kind in each directory."""
    texts = {f"{resource.KIND.plural}.yaml": _text(crd(resource)) for resource in RESOURCES}
    return {directory / name: text for directory in directories for name, text in texts.items()}


def _column(column: Column) -> dict[str, Any]:
    shown = {"name": column.name, "type": column.type, "jsonPath": column.path}
    return shown | ({"priority": column.priority} if column.priority else {})


def _text(manifest: dict[str, Any]) -> str:
    header = "# Generated from operator/sluice_api by `make generate`. Do not edit.\n"
    return header + yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """YAML as a reader and Go's parser want it: no anchors, and 2e-4 as a string in quotes (Go reads a float)."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Never an alias."""
        return True


def _string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if _looks_numeric(text) else None)


def _looks_numeric(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_Dumper.add_representer(str, _string)


def main(arguments: list[str]) -> int:
    """Write the files, or check that they are current."""
    parser = argparse.ArgumentParser(prog="python3 -m sluice_api.crd", description=__doc__)
    parser.add_argument("directories", nargs="+", type=Path, help="where the files go, such as crds")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is not current")
    options = parser.parse_args(arguments)
    if options.check:
        return generated.check(files(options.directories), "make generate")
    generated.write(files(options.directories))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
