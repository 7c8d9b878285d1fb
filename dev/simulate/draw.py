"""Pictures of a comparison: who had the GPUs at each hour, as PNG, and as a page with the figures."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dev.simulate.figures import cells
from dev.simulate.run import START, Played

_COLOURS = {"serving": "#4c78a8", "training": "#f58518", "waiting": "#e45756"}


def draw(name: str, plays: Sequence[Played], folder: Path) -> list[Path]:
    """Write <name>.png and <name>.html into a folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    png, page = folder / f"{name}.png", folder / f"{name}.html"
    figure = picture(plays)
    figure.savefig(png, dpi=110)
    plt.close(figure)
    page.write_text(_page(name, plays, png))
    return [png, page]


def picture(plays: Sequence[Played]) -> Figure:
    """A panel of each play, one below the other, and one legend."""
    figure, panels = plt.subplots(len(plays), 1, figsize=(11, 2.6 * len(plays)), sharex=True, layout="constrained")
    for panel, played in zip(panels, plays, strict=True):
        _panel(panel, played)
    panels[-1].set_xlabel("hours")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    return figure


def _panel(panel: Axes, played: Played) -> None:
    hours = [(sample.at - START).total_seconds() / 3600 for sample in played.samples]
    serving = [sample.serving for sample in played.samples]
    training = [sample.training for sample in played.samples]
    panel.stackplot(
        hours,
        serving,
        training,
        step="post",
        colors=[_COLOURS["serving"], _COLOURS["training"]],
        labels=["GPUs that serve", "GPUs that train"],
    )
    panel.fill_between(
        hours,
        serving,
        [sample.serving + sample.lent for sample in played.samples],
        step="post",
        facecolor=_COLOURS["training"],
        edgecolor="white",
        hatch="////",
        linewidth=0,
        label="of these, lent by engines",
    )
    wanted, waiting = [sample.wanted for sample in played.samples], [sample.waiting for sample in played.samples]
    panel.step(hours, wanted, where="post", color="black", linewidth=1, label="replicas wanted")
    panel.step(hours, waiting, where="post", color=_COLOURS["waiting"], linewidth=1, label="jobs that wait")
    panel.axhline(played.gpus, color="grey", linewidth=0.5)
    panel.set_title(played.policy.value, loc="left", fontsize=10)
    panel.set_ylim(0, played.gpus * 1.25)


def _page(name: str, plays: Sequence[Played], png: Path) -> str:
    lines = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>" for line in cells(plays))
    picture = base64.b64encode(png.read_bytes()).decode()
    return (
        f"<!doctype html><meta charset=utf-8><title>{html.escape(name)}</title>"
        "<style>body{font:15px sans-serif;margin:2em}td{padding:.3em 1em;border-bottom:1px solid #ddd}</style>"
        f"<h1>{html.escape(name)}</h1><table>{lines}</table><img src='data:image/png;base64,{picture}'>"
    )
