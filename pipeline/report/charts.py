"""The charts of a report: matplotlib draws, as SVG whose colours and fonts are the page's."""

import io
import re
import warnings
from collections.abc import Callable
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.data import Comparison, Histogram
from pipeline.report.overview import Row

_SVG = "http://www.w3.org/2000/svg"
# Drawn in colours that nothing else has, which become those of the page, light or dark.
_INK, _FAR, _NEAR, _RULE = "#010101", "#020202", "#030303", "#040404"
_OF_THE_PAGE = {
    _INK: "currentColor",
    _FAR: "var(--far)",
    _NEAR: "var(--near)",
    _RULE: "var(--rule)",
}
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "la-sr",  # the same page for the same data
    "text.parse_math": False,  # words come from users
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,  # ticks are <use> elements, whose names would meet those of other charts
}
WIDTH = 4.6  # inches, 331 units of the SVG: letters keep their size on a telephone


def distribution(histogram: Histogram, logarithmic: bool) -> Markup:
    """Shares of far and near patches over one column."""

    def draw(axes: Axes) -> None:
        edges = np.array(histogram.edges)
        for name, counts in histogram.counts.items():
            share = np.array(counts) / max(sum(counts), 1)
            colour = _FAR if name == "lr" else _NEAR
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.22, linewidth=0)
            # Line styles differ too: colour is not all that tells them apart.
            style = "-" if name == "lr" else (0, (4, 1.5))
            axes.stairs(share, edges, color=colour, linewidth=1.8, linestyle=style)
        if logarithmic:
            axes.set_xscale("log")
            ticks = _round_ticks(edges[0], edges[-1])
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        axes.set(xlim=(edges[0], edges[-1]), yticks=[])
        axes.set_ylim(bottom=0)

    return _svg(draw, 1.9)


def ratio(comparison: Comparison) -> Markup:
    """Photographs by far / near: left of the line, the far patches have less."""

    def draw(axes: Axes) -> None:
        edges = np.array(comparison.ratios.edges)
        (counts,) = comparison.ratios.counts.values()
        half = len(counts) // 2
        axes.stairs(counts[:half], edges[: half + 1], fill=True, color=_FAR)
        axes.stairs(counts[half:], edges[half:], fill=True, color=_RULE)
        axes.axvline(0, color=_INK, linewidth=1.2)
        ticks = [-4, -2, -1, 0, 1, 2, 4]
        axes.set_xticks(ticks, ["1/16", "1/4", "1/2", "1", "2", "4", "16"])
        axes.set(xlim=(edges[0], edges[-1]), yticks=[])
        axes.text(-0.12, 1.02, "far has less", ha="right", transform=axes.get_xaxis_transform())
        axes.text(0.12, 1.02, "far has more", ha="left", transform=axes.get_xaxis_transform())

    return _svg(draw, 1.9)


def words(rows: list[Row]) -> Markup:
    """The words that lean to far (right) and to near (left), by the log2 ratio of their shares."""

    def draw(axes: Axes) -> None:
        ratios = np.array([row["ratio"] for row in rows])
        places = range(len(rows))
        axes.barh(places, ratios, 0.62, color=[_FAR if r > 0 else _NEAR for r in ratios])
        axes.axvline(0, color=_INK, linewidth=0.8)
        for place, row in zip(places, rows, strict=True):
            side = "right" if row["ratio"] > 0 else "left"
            gap = -0.1 if row["ratio"] > 0 else 0.1
            axes.text(gap, place, row["word"], ha=side, va="center")
        reach = max(3.0, abs(ratios).max()) * 1.05
        ends = [tick for tick in (-4, -2, 0, 2, 4) if abs(tick) <= reach]
        axes.set_xticks(ends, [f"{2.0 ** abs(tick):g}x" for tick in ends])
        axes.set(xlim=(-reach, reach), ylim=(len(rows) - 0.4, -0.6), yticks=[])
        axes.set_xlabel("more often in near  ←      → more often in far")

    return _svg(draw, 0.6 + 0.235 * len(rows))


def _round_ticks(low: float, high: float) -> list[float]:
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    steps = (1,) if high / low > 1e3 else (1, 3)
    return [t for d in decades for s in steps if low <= (t := s * 10.0**d) <= high]


def _svg(draw: Callable[[Axes], None], height: float) -> Markup:
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Of letters that matplotlib's own font lacks; the page's fonts write them.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _adopted(buffer.getvalue())


def _adopted(svg: str) -> Markup:
    """matplotlib's file as an element of the page: its colours, its fonts, no names of its own.

    It is decoration to a screen reader: the page says the same in words and in a table.
    """
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(svg)
    for child in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}defs"):
        for element in root.findall(child):
            root.remove(element)  # the second holds a style that would reach the whole page
    for parent in root.iter():
        for element in [*parent]:
            if element.tag == f"{{{_SVG}}}g" and element.get("id") == "patch_1":
                parent.remove(element)  # the transparent ground
        for name in ("id", "clip-path"):
            parent.attrib.pop(name, None)
    for name in ("width", "height"):
        root.attrib.pop(name)
    root.attrib |= {"aria-hidden": "true", "focusable": "false"}
    text = ElementTree.tostring(root, encoding="unicode")
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    for drawn, of_the_page in _OF_THE_PAGE.items():
        text = text.replace(drawn, of_the_page)
    return Markup(text)
