"""Where everything of the lengths' histogram stands in its picture. The page draws it."""

from dataclasses import dataclass

from sluice_api.data_report import LengthBin, Lengths
from sluice_trainer.data.report.figures import number

WIDTH, HEIGHT = 720.0, 230.0
LEFT, RIGHT, BASE, TOP = 44.0, WIDTH - 8, HEIGHT - 34, 18.0
"""The edges of its bars."""
_LABELS = 8


@dataclass(frozen=True)
class Bar:
    """A bar, and what it says when it is pointed at."""

    x: float
    y: float
    width: float
    height: float
    says: str


@dataclass(frozen=True)
class Label:
    """A number on the axis."""

    x: float
    text: str


@dataclass(frozen=True)
class Histogram:
    """The picture, in its own pixels."""

    bars: tuple[Bar, ...]
    labels: tuple[Label, ...]
    most: str
    """Rows of the tallest bar."""
    limit: Label | None
    """Where the longest row is that training takes; None where no bin reaches."""

    @classmethod
    def of(cls, lengths: Lengths) -> "Histogram":
        """Lay out the bins."""
        bins = lengths.bins
        step = (RIGHT - LEFT) / max(1, len(bins))
        most = max((each.rows for each in bins), default=0)
        labelled = range(0, len(bins), max(1, round(len(bins) / _LABELS)))
        at = next((_within(lengths.limit, index, each) for index, each in enumerate(bins) if _has(each, lengths)), None)
        return cls(
            bars=tuple(_bar(each, LEFT + index * step, step, most) for index, each in enumerate(bins)),
            labels=tuple(Label(LEFT + index * step, number(bins[index].first)) for index in labelled),
            most=number(most),
            limit=None if at is None else Label(LEFT + at * step, number(lengths.limit)),
        )


def _bar(each: LengthBin, x: float, step: float, most: int) -> Bar:
    height = max(1.0 if each.rows else 0.0, (BASE - TOP) * each.rows / max(1, most))
    says = f"{number(each.first)} to {number(each.last)} tokens: {number(each.rows)} rows"
    return Bar(x + 1, BASE - height, max(1.0, step - 2), height, says)


def _has(each: LengthBin, lengths: Lengths) -> bool:
    return each.first <= lengths.limit <= each.last


def _within(limit: int, index: int, each: LengthBin) -> float:
    """How far from the left the limit lies, in bins."""
    return index + (limit - each.first) / (each.last - each.first + 1)
