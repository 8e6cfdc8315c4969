"""Coordinates of the charts: axes, areas and bars."""

import re

import pytest

from pipeline.report import charts
from pipeline.report.comparison import Histogram


def heights(path: str) -> list[float]:
    """The heights of the bins in a histogram's outline."""
    assert path.endswith(f"V{charts.PLOT}Z")
    return [charts.PLOT - float(y) for y in re.findall(r"V([\d.]+)H", path)]


def test_both_roles_have_the_same_area_and_the_highest_bin_fills_the_plot() -> None:
    histogram = Histogram([0, 0.25, 0.5, 0.75, 1], {"lr": [0, 0, 30, 10], "hr": [2, 1, 1, 0]})
    chart = charts.distribution(histogram, logarithmic=False)
    far, near = (heights(chart.curves[role]) for role in ("lr", "hr"))
    assert sum(far) == pytest.approx(sum(near), abs=0.2)
    assert max(far) == charts.PLOT and far == pytest.approx([0, 0, 110, 36.7], abs=0.1)
    assert chart.ticks[0] == (0, "0") and chart.ticks[-1] == (charts.WIDTH, "1")


def test_a_logarithmic_axis_has_bins_of_one_width() -> None:
    chart = charts.distribution(Histogram([0.01, 0.1, 1, 10], {"lr": [1, 2, 3]}), logarithmic=True)
    xs = [float(x) for x in re.findall(r"H([\d.]+)", chart.curves["lr"])]
    assert xs == pytest.approx([charts.WIDTH * i / 3 for i in (1, 2, 3)], abs=0.1)
    assert [label for _, label in chart.ticks] == ["0.01", "0.03", "0.1", "0.3", "1", "3", "10"]


def test_photographs_without_patches_of_a_role_leave_an_empty_chart() -> None:
    chart = charts.distribution(Histogram([0, 0.5, 1], {"lr": [0, 0]}), logarithmic=False)
    assert heights(chart.curves["lr"]) == [0, 0]
    assert charts.words([]).bars == []


def test_bars_left_of_the_middle_say_that_far_has_less() -> None:
    chart = charts.ratio(Histogram([-4, -2, 0, 2, 4], {"ratio": [3, 0, 0, 6]}))
    left, right = chart.bars  # empty bins have no bar
    assert left["less"] and (left["x"], left["height"]) == (0, charts.PLOT / 2)
    assert not right["less"] and right["x"] + right["width"] == charts.WIDTH
    assert (charts.WIDTH / 2, "1") in chart.ticks


def test_words_lean_to_their_role() -> None:
    chart = charts.words([{"word": "sky", "ratio": 4.0}, {"word": "cup", "ratio": -2.0}])
    sky, cup = chart.bars
    middle = charts.WIDTH / 2
    assert sky["far"] and sky["x"] == middle
    assert not cup["far"] and cup["x"] + cup["width"] == pytest.approx(middle)
    assert sky["width"] == pytest.approx(2 * cup["width"])
    assert all(0 <= x <= charts.WIDTH for x, _ in chart.ticks)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (0.003, 0.34, ["0.1", "0.2", "0.3"]),
        (-1, 1.2, ["-1", "-0.5", "0", "0.5", "1"]),
        (0, 1e-9, ["0", "2e-10", "4e-10", "6e-10", "8e-10", "1e-09"]),
        (5000, 62000, ["10000", "20000", "30000", "40000", "50000", "60000"]),
    ],
)
def test_linear_ticks_are_round(low: float, high: float, expected: list[str]) -> None:
    assert [str(float(tick)) for tick in charts.linear_ticks(low, high)] == [
        str(float(tick)) for tick in expected
    ]


def test_logarithmic_ticks() -> None:
    assert charts.log_ticks(0.002, 0.09) == [0.003, 0.01, 0.03]
    assert charts.log_ticks(1, 5000) == [1, 10, 100, 1000]
