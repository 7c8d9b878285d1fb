"""What a play comes to, in figures: utilisation, service, waits."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import quantiles

from dev.simulate.run import Played, Sample


@dataclass(frozen=True)
class Figures:
    """One line of the comparison. Shares are of all GPUs and of all the time, waits in minutes."""

    used: float
    """GPUs that train or serve."""
    served: float
    """Replicas that serve, of those that the autoscalers ask for."""
    lent_gpu_hours: float
    jobs: int
    done: int
    wait_p50: float
    wait_p95: float
    """Until a job has its GPUs; one that never had any has waited until the end."""
    interruptions: int


def figures(played: Played) -> Figures:
    """Sum a play up."""
    spans = list(_spans(played))
    all_seconds = sum(seconds for _, seconds in spans)
    wanted = sum(sample.wanted * seconds for sample, seconds in spans)
    waits = [((job.started or played.ends) - job.arrived).total_seconds() / 60 for job in played.jobs.values()]
    cuts = quantiles(waits, n=100, method="inclusive")
    return Figures(
        used=sum((s.training + s.serving) * seconds for s, seconds in spans) / (played.gpus * all_seconds),
        served=sum(min(s.serving, s.wanted) * seconds for s, seconds in spans) / wanted,
        lent_gpu_hours=sum(s.lent * seconds for s, seconds in spans) / timedelta(hours=1).total_seconds(),
        jobs=len(waits),
        done=sum(1 for job in played.jobs.values() if job.ended),
        wait_p50=cuts[49],
        wait_p95=cuts[94],
        interruptions=sum(job.interruptions for job in played.jobs.values()),
    )


_HEAD = ("", "GPUs in use", "replicas served", "lent GPU h", "jobs done", "wait p50", "wait p95", "interruptions")


def cells(plays: Sequence[Played]) -> list[tuple[str, ...]]:
    """One trace under several policies, a line each, below the names of the columns."""
    return [_HEAD, *(_row(played.policy.value, figures(played)) for played in plays)]


def table(plays: Sequence[Played]) -> str:
    """The same as text."""
    lines = cells(plays)
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _row(name: str, found: Figures) -> tuple[str, ...]:
    return (
        name,
        f"{found.used:.0%}",
        f"{found.served:.0%}",
        f"{found.lent_gpu_hours:.0f}",
        f"{found.done} of {found.jobs}",
        f"{found.wait_p50:.0f} min",
        f"{found.wait_p95:.0f} min",
        str(found.interruptions),
    )


def _spans(played: Played) -> list[tuple[Sample, float]]:
    ends: list[datetime] = [sample.at for sample in played.samples[1:]] + [played.ends]
    return [(sample, (end - sample.at).total_seconds()) for sample, end in zip(played.samples, ends, strict=True)]
