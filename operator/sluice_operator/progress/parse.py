"""A request's body as a report: size, depth, types and numbers are bounded before anything is believed."""

import re
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from sluice_api.model import Model
from sluice_operator.progress.refusal import Refusal, Refused

MAX_DEPTH = 8
MAX_INTEGER = 2**53 - 1
"""What every JSON client can hold, and more than anybody counts."""
MAX_ERRORS = 5

_MARK = re.compile(rb'\\.|["\[\]{}]', re.DOTALL)

AnyReport = TypeVar("AnyReport", bound=Model)


def parse(kind: type[AnyReport], body: bytes) -> AnyReport:
    """Read a report, strictly: no unknown field, no converted type, no NaN.

    Raises:
        Refused: what is wrong, and in which field.
    """
    if depth(body) > MAX_DEPTH:
        raise Refused(Refusal.MALFORMED, f"nested deeper than {MAX_DEPTH}")
    try:
        report = kind.model_validate_json(body, strict=True, by_alias=True, by_name=False)
    except ValidationError as invalid:
        raise Refused(Refusal.MALFORMED, _explained(invalid)) from None
    for name, value in _numbers(report):
        if value > MAX_INTEGER:
            raise Refused(Refusal.MALFORMED, f"{name}: above {MAX_INTEGER}")
    return report


def depth(body: bytes) -> int:
    """How deep brackets are nested, those in strings not counted."""
    deepest = level = 0
    in_string = False
    for mark in _MARK.findall(body):
        if mark == b'"':
            in_string = not in_string
        elif in_string or mark.startswith(b"\\"):
            continue
        else:
            level += 1 if mark in b"[{" else -1
            deepest = max(deepest, level)
    return deepest


def _explained(invalid: ValidationError) -> str:
    """The first errors as `field: what is wrong`, without the value: it may be anything."""
    errors = invalid.errors(include_url=False, include_context=False, include_input=False)
    lines = [f"{'.'.join(str(part)[:64] for part in error['loc']) or 'body'}: {error['msg']}" for error in errors]
    more = [f"and {len(lines) - MAX_ERRORS} more"] if len(lines) > MAX_ERRORS else []
    return "; ".join([*lines[:MAX_ERRORS], *more])


def _numbers(model: BaseModel) -> list[tuple[str, int]]:
    """Every integer of a report, with its field."""
    found: list[tuple[str, int]] = []
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, int):
            found.append((field.alias or name, value))
        elif isinstance(value, tuple):
            found += [number for part in value for number in _numbers(part)]
    return found
