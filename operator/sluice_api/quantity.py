"""Kubernetes quantities as integers: cpu in millicores, everything else in its own unit."""

from decimal import Decimal

_SUFFIXES = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}


def amount(resource: str, quantity: str) -> int:
    """A quantity of a resource as an integer, rounded up: `cpu` in millicores, `memory` in bytes.

    Raises:
        ValueError: it is no quantity.
    """
    number = quantity.rstrip("numkKMGTPEi")
    suffix = quantity[len(number) :]
    if suffix not in _SUFFIXES:
        number, suffix = quantity, ""
    try:
        value = Decimal(number) * _SUFFIXES[suffix]
    except ArithmeticError as error:
        raise ValueError(f"{quantity!r} is not a quantity") from error
    scaled = value * 1000 if resource == "cpu" else value
    return int(scaled.to_integral_value(rounding="ROUND_CEILING"))


def amounts(quantities: dict[str, str]) -> dict[str, int]:
    """Quantities by resource name as integers."""
    return {resource: amount(resource, str(quantity)) for resource, quantity in quantities.items()}


def readable(resource: str, value: int) -> str:
    """An amount as a person would write it: 7.5Gi, 500m, 2."""
    if resource == "cpu":
        return f"{value}m" if value % 1000 else str(value // 1000)
    if resource in ("memory", "ephemeral-storage"):
        gibibytes = value / 2**30
        return f"{gibibytes:.0f}Gi" if gibibytes >= 100 else f"{gibibytes:.3g}Gi"
    return str(value)


def decimal(value: float, places: int) -> str:
    """A number for a column: 2.3456, and 1.2346e+12 where digits would say nothing."""
    return f"{value:.{places}f}" if abs(value) < 1e9 else f"{value:.4e}"
