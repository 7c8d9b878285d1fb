"""The report's figures in words, the same for the page and for a terminal."""

from collections.abc import Iterator
from dataclasses import dataclass

from sluice_api.data_report import DataReport, Estimate


def number(value: int) -> str:
    """A count with its thousands apart: 1,234."""
    return f"{value:,}"


def size(value: float) -> str:
    """Bytes as a person would say them: 740 MiB, 12.4 GiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1000 or unit == "GiB":
            break
        value /= 1024
    return f"{value:,.0f} {unit}" if unit == "bytes" or value >= 100 else f"{value:.3g} {unit}"


def duration(seconds: int) -> str:
    """A length of time in two units at most: 45 s, 12 min, 3 h 20 min, 2 d 5 h."""
    if seconds < 90:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


@dataclass(frozen=True)
class Passed:
    """How many rows came to a step, and what became of them."""

    name: str
    rows_in: int
    rows_out: int
    changed: int = 0
    dropped: tuple[str, ...] = ()
    """Why rows did not pass, each with how many."""


def passed(report: DataReport) -> Iterator[Passed]:
    """What became of the rows from files to tokens, step by step."""
    late = report.refused_after_steps if report.steps else 0
    yield _refusing("read", report.rows_read, report.rows_refused - late)
    for step in report.steps:
        others = step.dropped_rows - sum(drop.rows for drop in step.dropped)
        why = [f"{number(drop.rows)}: {drop.why}" for drop in step.dropped]
        why += [f"{number(others)}: other reasons"] if others > 0 else []
        yield Passed(step.name, step.rows_in, step.rows_out, step.changed, tuple(why))
    if late:
        yield _refusing("tokens", report.steps[-1].rows_out, late)


def _refusing(name: str, rows: int, refused: int) -> Passed:
    why = (f"{number(refused)}: can't be trained on",) if refused else ()
    return Passed(name, rows, rows - refused, dropped=why)


def tiles(report: DataReport) -> list[tuple[str, str, str]]:
    """What a reader wants to know first: name, value, note."""
    share = f"{100 * report.loss_tokens / report.tokens:.0f} % of them learnt" if report.tokens else ""
    found = [
        ("Rows to train on", number(report.rows), f"of {number(report.rows_read)} that were read"),
        ("Held out", number(report.validation_rows), ""),
        ("Tokens, one pass", number(report.tokens), share),
        ("Longest row", number(report.lengths.longest), "tokens"),
    ]
    estimate = report.estimate
    if estimate is None:
        return found
    found.append(("Steps", number(estimate.steps), ""))
    found.append(("GPU memory", size(estimate.gpu_memory_bytes), _of_available(estimate)))
    if estimate.seconds is not None:
        found.append(("Time", duration(estimate.seconds), _range(estimate)))
    if estimate.price is not None:
        found.append(("Price", estimate.price, f"{estimate.least_price} to {estimate.most_price}"))
    return found


def estimate_rows(estimate: Estimate) -> Iterator[tuple[str, str]]:
    """The estimate as a table: name, value."""
    gpus = f"{number(estimate.gpus)} x {estimate.gpu_product}" if estimate.gpu_product else number(estimate.gpus)
    yield "GPUs", gpus
    yield "Memory of each GPU", " ".join((size(estimate.gpu_memory_bytes), _of_available(estimate))).strip()
    yield "The least that would do", size(estimate.least_gpu_memory_bytes)
    yield "Tokens on a GPU at once", number(estimate.micro_batch_tokens)
    yield "Activations computed twice", "yes" if estimate.gradient_checkpointing else "no"
    if estimate.gpus > 1:
        yield "Weights sharded over the GPUs", "yes" if estimate.sharded else "no"
    yield "Steps", number(estimate.steps)
    yield "Tokens, all epochs", number(estimate.tokens)
    if estimate.seconds is not None:
        yield "Time", f"{duration(estimate.seconds)} ({_range(estimate)})"
    if estimate.price is not None:
        yield "Price", f"{estimate.price} ({estimate.least_price} to {estimate.most_price})"


def _of_available(estimate: Estimate) -> str:
    there = estimate.available_gpu_memory_bytes
    return f"of {size(there)} that the pool's largest has" if there else ""


def _range(estimate: Estimate) -> str:
    if estimate.least_seconds is None or estimate.most_seconds is None:
        return ""
    return f"{duration(estimate.least_seconds)} to {duration(estimate.most_seconds)}"
