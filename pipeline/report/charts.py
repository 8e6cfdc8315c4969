"""Coordinates of the charts, in units of an SVG viewBox; `templates/charts.html` draws them."""

import math
from dataclasses import dataclass, field
from typing import Any

from pipeline.report.comparison import Histogram
from pipeline.report.overview import Row

WIDTH = 340  # of every chart
PLOT = 110  # height of a histogram
ROW = 18  # height of a word's bar and the gap below it
# On an axis of ratios: log2 of the ratio, and the label.
_RATIO_TICKS = {-4: "1/16", -2: "1/4", -1: "1/2", 0: "1", 1: "2", 2: "4", 4: "16"}
_WORD_TICKS = {-4: 16, -2: 4, 0: 1, 2: 4, 4: 16}  # times more often, on either side


@dataclass(frozen=True)
class Chart:
    """A chart without its labels, which the template places around it."""

    height: float
    ticks: list[tuple[float, str]]  # x and label
    curves: dict[str, str] = field(default_factory=dict)  # role: SVG path of its histogram
    bars: list[dict[str, Any]] = field(default_factory=list)
    width: float = WIDTH


def distribution(histogram: Histogram, logarithmic: bool) -> Chart:
    """Two histograms over one axis, of far and of near patches, with equal areas."""
    edges = [math.log10(edge) for edge in histogram.edges] if logarithmic else histogram.edges
    low, high = edges[0], edges[-1]
    xs = [_scale(edge, low, high) for edge in edges]
    shares = {
        role: [count / max(sum(counts), 1) for count in counts]
        for role, counts in histogram.counts.items()
    }
    top = max((max(share) for share in shares.values()), default=0) or 1
    curves = {role: _steps(xs, [PLOT * s / top for s in share]) for role, share in shares.items()}
    if logarithmic:
        values = log_ticks(histogram.edges[0], histogram.edges[-1])
        ticks = [(_scale(math.log10(value), low, high), f"{value:g}") for value in values]
    else:
        ticks = [(_scale(value, low, high), f"{value:g}") for value in linear_ticks(low, high)]
    return Chart(PLOT, ticks, curves)


def ratio(ratios: Histogram) -> Chart:
    """Number of photographs by the ratio far / near. Bars left of the middle: far has less."""
    (counts,) = ratios.counts.values()
    low, high = ratios.edges[0], ratios.edges[-1]
    xs = [_scale(edge, low, high) for edge in ratios.edges]
    top = max(counts) or 1
    bars = [
        {"x": xs[i], "width": xs[i + 1] - xs[i], "height": PLOT * n / top, "less": i < len(xs) // 2}
        for i, n in enumerate(counts)
        if n
    ]
    ticks = [(_scale(value, low, high), label) for value, label in _RATIO_TICKS.items()]
    return Chart(PLOT, ticks, bars=bars)


def words(rows: list[Row]) -> Chart:
    """A bar a word, by the log2 ratio of its shares: far to the right, near to the left."""
    reach = 1.05 * max(3.0, *(abs(row["ratio"]) for row in rows)) if rows else 3.0
    bars = []
    for i, row in enumerate(rows):
        end, middle = _scale(row["ratio"], -reach, reach), WIDTH / 2
        x, width = min(end, middle), abs(end - middle)
        far = row["ratio"] > 0
        bars.append({"x": x, "y": ROW * i, "width": width, "far": far, "word": row["word"]})
    ticks = [
        (_scale(value, -reach, reach), f"{times}\N{MULTIPLICATION SIGN}")
        for value, times in _WORD_TICKS.items()
        if abs(value) <= reach
    ]
    return Chart(ROW * len(rows), ticks, bars=bars)


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two positive numbers; within three decades, three times these too."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if high / low > 1e3 else (1, 3)
    ticks = (float(f"{step}e{decade}") for decade in decades for step in steps)
    return [tick for tick in ticks if low <= tick <= high]


def linear_ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from `low` to `high`, at most seven."""
    power = 10.0 ** math.floor(math.log10((high - low) / 6))
    step = next(power * m for m in (1, 2, 5, 10) if power * m * 6 >= high - low)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{step * i:.6g}") for i in range(first, last + 1)]


def _scale(value: float, low: float, high: float) -> float:
    return WIDTH * (value - low) / (high - low)


def _steps(xs: list[float], heights: list[float]) -> str:
    """The outline of a histogram, closed along the axis."""
    steps = "".join(f"V{PLOT - h:.1f}H{x:.1f}" for x, h in zip(xs[1:], heights, strict=True))
    return f"M{xs[0]:.1f},{PLOT}{steps}V{PLOT}Z"
