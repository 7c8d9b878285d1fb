"""docs/api.md, docs/reasons.md and the tables of docs/training.md from the models.

python3 -m sluice_api.docs [DIRECTORY] [--check]
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from sluice_api import generated
from sluice_api.crd import RESOURCES, resource_schema
from sluice_api.finetunejob import FineTuneJob
from sluice_api.foreign import LORA_CONFIG, SAGE, TRAINING_ARGUMENTS, Fate, Foreign
from sluice_api.meta import API_VERSION, EXPERIMENTAL, GROUP
from sluice_api.reasons import Reason
from sluice_api.resource import Resource
from sluice_api.schema import RULES, Schema, fields_of

REASON_GROUPS = {
    Reason.PENDING: "A job on its way",
    Reason.QUOTA_EXCEEDED: "Why a claim does not get further",
    Reason.POOL_NOT_FOUND: "Refused before Prepare, or by it",
    Reason.REQUEUED: "How an attempt ends",
    Reason.ALL_SERVING: "Engines",
    Reason.LOADING: "Adapters",
    Reason.POOL_READY: "Pools",
}
"""The first reason of each group, in the order of the enumeration."""

_REASONS_HEAD = """\
# Reasons

Every condition, attempt and event of Sluice carries one of these words. The list is closed: nothing else
appears. The message beside a reason names the objects concerned, since when it is so, and what would end it.

Generated from `operator/sluice_api/reasons.py` by `make generate`.
"""
_API_HEAD = f"""\
# API reference: {API_VERSION}

The same sentences are in the cluster: `kubectl explain finetunejob.spec.scheduling`. A field that is not required
and has no default may be absent. The API server refuses an object that breaks a rule, with the message shown here.

Generated from `operator/sluice_api` by `make generate`.
"""


def reasons_page() -> str:
    """docs/reasons.md."""
    lines = [_REASONS_HEAD]
    for reason in Reason:
        if reason in REASON_GROUPS:
            lines += [f"\n## {REASON_GROUPS[reason]}\n", *_table_head("Reason", "Meaning", "What to do")]
        lines.append(_row(f"`{reason.value}`", reason.meaning, reason.next_step))
    return "\n".join(lines) + "\n"


def api_page() -> str:
    """docs/api.md."""
    links = ", ".join(f"[{resource.KIND.kind}](#{resource.KIND.kind.lower()})" for resource in RESOURCES)
    kinds = (line for resource in RESOURCES for line in _kind(resource))
    return "\n".join([_API_HEAD, links, *_experimental(), *kinds]) + "\n"


def training_page(written: str) -> str:
    """docs/training.md, with its tables made anew between `<!-- table: NAME -->` and `<!-- end -->`."""
    for name, lines in _training_tables().items():
        head, begins, rest = written.partition(f"<!-- table: {name} -->\n")
        _, ends, tail = rest.partition("<!-- end -->")
        written = "\n".join([f"{head}{begins}", *lines, "", f"{ends}{tail}"])
    return written


def _training_tables() -> dict[str, list[str]]:
    spec = resource_schema(FineTuneJob)["properties"]["spec"]["properties"]
    method = spec["method"]
    which = _row("`method`", _type(method), _default(method, required=False), method["description"])
    settings = (which, *(row for part in ("lora", "training") for row in _fields(spec[part], part)))
    foreign = {"TrainingArguments": TRAINING_ARGUMENTS, "LoraConfig": LORA_CONFIG, "SAGE": SAGE}
    return {
        "settings": [*_table_head("Field", "Type", "Default", "Meaning"), *settings],
        **{
            name: [*_table_head("Theirs", "Here"), *(_row(f"`{theirs}`", _fate(it)) for theirs, it in table.items())]
            for name, table in foreign.items()
        },
    }


def _fate(foreign: Foreign) -> str:
    ours = f"`{foreign.ours}`" if foreign.ours else ""
    match foreign.fate:
        case Fate.MAPPED:
            return f"{ours}: {foreign.note}" if foreign.note else ours
        case Fate.IGNORED:
            return f"ignored. {foreign.note}"
        case Fate.REFUSED:
            return f"refused. {foreign.note}" + (f" The nearest: {ours}" if ours else "")


def _experimental() -> Iterator[str]:
    """The fields that say of themselves, or of one of their values, that no GPU has seen them yet."""
    yield "\n## Experimental\n"
    yield "These fields and values have run on no GPU yet. README.md says what has been tried in its place.\n"
    yield from _table_head("Kind", "Field", "Value")
    for resource in RESOURCES:
        schema = resource_schema(resource)["properties"]
        for place, field in (named for part in ("spec", "status") for named in fields_of(schema[part], part)):
            before, marked, _ = field.get("description", "").partition(EXPERIMENTAL)
            if marked:
                value = before.rpartition(" (")[0].rpartition(" ")[2]
                yield _row(resource.KIND.kind, f"`{place}`", f"`{value}`" if value else "any")


def _kind(resource: type[Resource]) -> Iterator[str]:
    kind, schema = resource.KIND, resource_schema(resource)
    yield f"\n## {kind.kind}\n"
    yield f"{schema['description']}\n"
    yield f"- `{kind.plural}.{GROUP}`, short: `{', '.join(kind.short_names)}`"
    yield f"- {'Lives in a namespace' if kind.namespaced else 'Cluster-wide'}"
    if kind.scale:
        yield f"- `kubectl scale` and HorizontalPodAutoscaler write `{kind.scale['specReplicasPath'].lstrip('.')}`"
    yield f"- `kubectl get` shows {', '.join(column.name.upper() for column in kind.columns)}"
    for part in ("spec", "status"):
        yield f"\n### {kind.kind} {part}\n"
        yield from _table_head("Field", "Type", "Default", "Meaning")
        yield from _fields(schema["properties"][part], part)
    rules = list(dict.fromkeys(_rules(schema)))
    if rules:
        yield f"\n### {kind.kind} rules\n"
        yield from rules


def _fields(schema: Schema, path: str) -> Iterator[str]:
    required = _required(schema, path)
    for place, field in fields_of(schema, path):
        if not place.endswith(("[]", "{}")):
            yield _row(f"`{place}`", _type(field), _default(field, place in required), field["description"])


def _required(schema: Schema, path: str) -> set[str]:
    nested = ((path, schema), *fields_of(schema, path))
    return {f"{place}.{name}" for place, field in nested for name in field.get("required", ())}


def _type(field: Schema) -> str:
    match field:
        case {"enum": values}:
            return ", ".join(f"`{value}`" for value in values)
        case {"items": items}:
            return f"list of {_type(items)}"
        case {"additionalProperties": values}:
            return f"map to {_type(values)}"
        case {"format": "date-time"}:
            return "time"
        case {"type": "integer", "minimum": least, "maximum": most}:
            return f"integer, {least} to {most}"
        case {"type": "string", "x-kubernetes-validations": [{"message": remedy, "rule": rule}, *_]} if _is_form(rule):
            return str(remedy).removeprefix("write ")
        case _:
            return str(field["type"])


def _default(field: Schema, required: bool) -> str:
    if required:
        return "required"
    default = field.get("default")
    return "" if default in (None, {}, []) else f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _is_form(rule: str) -> bool:
    """Whether a rule says what a single value looks like, and not when it may change."""
    return "oldSelf" not in rule


def _rules(schema: Schema) -> Iterator[str]:
    """Rules of objects, and of what may change; others of a single value are in its type."""
    for place, field in (("", schema), *fields_of(schema, "")):
        for rule in field.get(RULES, ()):
            if field["type"] == "object" or not _is_form(rule["rule"]):
                subject = f"{place}{rule.get('fieldPath', '')}".lstrip(".")
                yield f"- {f'`{subject}` ' if subject else ''}{rule['message']}".replace("<", "&lt;")


def _table_head(*titles: str) -> list[str]:
    return [_row(*titles), _row(*("---" for _ in titles))]


def _row(*cells: str) -> str:
    return f"| {' | '.join(_cells(cells))} |"


def _cells(cells: Iterable[str]) -> Iterator[str]:
    return (cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells)


def main(arguments: list[str]) -> int:
    """Write both pages, or check that they are current."""
    parser = argparse.ArgumentParser(prog="python3 -m sluice_api.docs", description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=Path("docs"), help="where the pages go")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is not current")
    options = parser.parse_args(arguments)
    pages = {options.directory / "api.md": api_page(), options.directory / "reasons.md": reasons_page()}
    if (training := options.directory / "training.md").exists():
        pages[training] = training_page(training.read_text())
    if options.check:
        return generated.check(pages, "make generate")
    generated.write(pages)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
