"""Curves over training steps, as coordinates of SVG; `templates/run.html` draws them."""

import math
from dataclasses import dataclass, field
from typing import Any

WIDTH, HEIGHT = 340.0, 130.0  # of the plot, in units of the viewBox
MOST = 400  # points of a curve; more are averaged in groups
SMOOTH = 40  # points from which a smoothed curve is drawn over the measured one
Points = list[tuple[int, float]]  # step and value


@dataclass(frozen=True)
class Line:
    """A curve: SVG paths, and its last value."""

    label: str
    path: str
    smooth: str  # "" for few points
    dots: list[tuple[float, float]]  # of few points
    first: float
    last: float


@dataclass(frozen=True)
class Rule:
    """A horizontal line to compare with."""

    label: str
    value: float
    y: float
    label_y: float


@dataclass(frozen=True)
class Chart:
    """A diagram. marker: x of the best step."""

    title: str
    about: str
    lines: list[Line]
    rules: list[Rule] = field(default_factory=list)
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)
    marker: float | None = None
    width: float = WIDTH
    height: float = HEIGHT


def chart(
    title: str,
    about: str,
    series: dict[str, Points],
    rules: dict[str, float] | None = None,
    best: int | None = None,
) -> Chart | None:
    """Several series by label over one axis; None if there is nothing to draw."""
    series = {label: averaged(points) for label, points in series.items() if points}
    if not series:
        return None
    rules = {label: value for label, value in (rules or {}).items() if math.isfinite(value)}
    steps = [step for points in series.values() for step, _ in points]
    values = [value for points in series.values() for _, value in points]
    left, right = (0, max(max(steps), 1))
    low, high = _range([*values, *rules.values()])

    def x(step: float) -> float:
        return round(WIDTH * (step - left) / (right - left), 1)

    def y(value: float) -> float:
        return round(HEIGHT * (1 - (value - low) / (high - low)), 1)

    lines = []
    for label, points in series.items():
        dots = [(x(step), y(value)) for step, value in points]
        many = len(points) >= SMOOTH
        smooth = [(x(s), y(v)) for s, v in smoothed(points)] if many else []
        lines.append(
            Line(label, _path(dots), _path(smooth), [] if many else dots,
                 points[0][1], points[-1][1])
        )  # fmt: skip
    return Chart(
        title,
        about,
        lines,
        _apart([Rule(label, value, y(value), y(value)) for label, value in rules.items()]),
        [(x(tick), count(tick)) for tick in ticks(left, right, 4) if tick == int(tick)],
        [(y(tick), number(tick)) for tick in ticks(low, high, 4)],
        x(best) if best is not None and best <= right else None,
    )


def series(lines: list[dict[str, Any]], name: str) -> Points:
    """The finite values of a name in lines of stats.jsonl."""
    return [
        (line["step"], float(line[name]))
        for line in lines
        if isinstance(line.get(name), int | float) and math.isfinite(line[name])
    ]


def averaged(points: Points) -> Points:
    """At most MOST points: means of equally many, apart from the first and the last point."""
    if len(points) <= MOST:
        return points
    inner, size = points[1:-1], -(-(len(points) - 2) // (MOST - 2))
    groups = [inner[i : i + size] for i in range(0, len(inner), size)]
    means = [
        (group[len(group) // 2][0], sum(value for _, value in group) / len(group))
        for group in groups
    ]
    return [points[0], *means, points[-1]]


def smoothed(points: Points) -> Points:
    """The mean of each point and its neighbours, a twentieth of all to each side."""
    reach = max(len(points) // 20, 1)
    result = []
    for i, (step, _) in enumerate(points):
        near = points[max(i - reach, 0) : i + reach + 1]
        result.append((step, sum(value for _, value in near) / len(near)))
    return result


def ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from `low` to `high`, at most `most` + 1."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * m for m in (1, 2, 5, 10) if power * m * most >= (high - low) * 0.999999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{step * i:.6g}") for i in range(first, last + 1)]


def number(value: float) -> str:
    """Format a number with three significant figures, without an exponent where it is short."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{float(f'{value:.3g}'):g}" if abs(value) >= 1e-4 else f"{value:.0e}"


def count(value: float) -> str:
    """Format a number of steps: 5000 as 5k."""
    return f"{value / 1000:g}k" if value >= 1000 and value % 100 == 0 else f"{value:g}"


def _range(values: list[float]) -> tuple[float, float]:
    """The axis for these values, with a margin."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _path(points: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in points) if points else ""


def _apart(rules: list[Rule], least: float = 12) -> list[Rule]:
    """Rules whose labels do not overlap."""
    placed: list[Rule] = []
    for rule in sorted(rules, key=lambda rule: rule.y):
        label_y = max(rule.y, placed[-1].label_y + least) if placed else rule.y
        placed.append(Rule(rule.label, rule.value, rule.y, label_y))
    return placed
