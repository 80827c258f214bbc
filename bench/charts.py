"""The pictures of the README and `docs/performance.md`, from the results: SVG, and PNG for what shows no SVG."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from standings import RESULTS, Result, results

OURS, THEIRS, INK, PALE = "#c2410c", "#64748b", "#1f2937", "#e5e7eb"
ROW_INCHES, WIDTH_INCHES, HEAD_INCHES = 0.27, 8.0, 1.05
PNG_DPI = 100


def draw(found: Mapping[str, Result], folder: Path) -> None:
    """Those whose sections there are."""
    style = {"font.family": "DejaVu Sans", "font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "poolserver"}
    with mpl.rc_context(style):
        for name, (title, sections) in CHARTS.items():
            panels = [(found[section], metric, heading) for section, metric, heading in sections if section in found]
            if sections[0][0] in found:
                save(chart(title, panels), folder / name)


CHARTS: dict[str, tuple[str, list[tuple[str, str, str]]]] = {
    "short": (
        "Server CPU for a short connection, and how many a second",
        [("short", "cpu_us", "µs of CPU (less is better)"), ("redis-short", "per_second", "redis-benchmark, a second")],
    ),
    "kept": (
        "Sixteen kept connections",
        [("kept", "cpu_us", "µs of CPU for a request"), ("redis-kept", "per_second", "redis-benchmark, a second")],
    ),
    "http": (
        "HTTP: the same handler, or an equivalent WSGI application",
        [("http-short", "cpu_us", "µs of CPU, short connection"), ("wrk-short", "per_second", "wrk, short, a second")],
    ),
    "overload": (
        "1,000 clients against 32 lanes, a connection for each line",
        [("overload", "p99_ms", "p99, ms (less is better)"), ("overload", "per_second", "a second")],
    ),
}
"""By file: title, and for each panel the section, the metric and the axis."""


def chart(title: str, panels: Sequence[tuple[Result, str, str]]) -> pyplot.Figure:
    """Bars side by side, in the order of the first panel's figures."""
    first, metric, _ = panels[0]
    able = [each for each in first.standings if not each.cannot]
    labels = [each.label for each in sorted(able, key=lambda each: each.middle(metric), reverse=True)]
    height = ROW_INCHES * len(labels) + HEAD_INCHES
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(WIDTH_INCHES, height), sharey=True, squeeze=False, layout="constrained"
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    for axis, (result, name, heading) in zip(axes[0], panels, strict=True):
        bars(axis, result, name, labels)
        axis.set_xlabel(heading, color=INK)
    return figure


def bars(axis: Axes, result: Result, metric: str, labels: Sequence[str]) -> None:
    """One panel: medians, with a line from quartile to quartile. What is far longer than the rest is cut."""
    samples = [result[label].samples.get(metric, []) for label in labels]
    middles = [median(each) if each else 0.0 for each in samples]
    most = bound(middles)
    colours = [OURS if label.startswith("poolserver") else THEIRS for label in labels]
    axis.barh(labels, [min(each, most) for each in middles], color=colours, height=0.7)
    for place, (rounds, middle) in enumerate(zip(samples, middles, strict=True)):
        low, _, high = quantiles(rounds, n=4) if len(rounds) > 1 else [middle] * 3
        axis.plot([min(low, most), min(high, most)], [place, place], color=INK, linewidth=1)
        axis.text(min(max(high, middle), most), place, text(middle, most), va="center", fontsize=8, color=INK)
    axis.set_xlim(0, most * 1.25)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(left=False, colors=INK)
    axis.grid(axis="x", color=PALE)
    axis.set_axisbelow(True)


def text(value: float, most: float) -> str:
    """What stands beside a bar."""
    if not value:
        return " –"
    shown = f" {value:,.0f}" if value >= 100 else f" {value:.1f}"
    return f"{shown} →" if value > most else shown


def bound(values: Sequence[float]) -> float:
    """Where the axis ends: at the second longest bar, if the longest is more than twice that."""
    longest, second, *_ = sorted(values, reverse=True)
    return second * 1.25 if longest > 2 * second else longest


def save(figure: pyplot.Figure, path: Path) -> None:
    """Both formats, without a date that would make each run's files differ."""
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), dpi=PNG_DPI)
    pyplot.close(figure)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if sys.argv[1:] else RESULTS
    draw(results(folder), folder)
