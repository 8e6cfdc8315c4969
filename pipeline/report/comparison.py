"""Histograms, and the comparison of far and near patches with its confidence interval."""

import math
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

from pipeline.report.overview import Row

_Z = NormalDist().inv_cdf(0.975)  # of a 95 % interval


@dataclass(frozen=True)
class Histogram:
    """Number of values between neighbouring edges, by name."""

    edges: list[float]  # n + 1, ascending
    counts: dict[str, list[int]]  # n each

    def table(self, rows: int) -> list[Row]:
        """Return a coarser histogram of shares as rows. rows: divides the number of bins."""
        step = len(self.edges[1:]) // rows
        return [
            {
                "low": self.edges[i],
                "high": self.edges[i + step],
                "shares": {
                    name: sum(counts[i : i + step]) / max(sum(counts), 1)
                    for name, counts in self.counts.items()
                },
            }
            for i in range(0, len(self.edges) - 1, step)
        ]


@dataclass(frozen=True)
class Comparison:
    """Far against near patches in one measure, over the photographs that have both."""

    measure: str
    far: float  # median over photographs of the mean of their far patches
    near: float
    photographs: int
    lower: int  # photographs whose far patches have less than their near ones
    ratios: Histogram = field(repr=False)  # log2 of far / near by photograph

    @property
    def share(self) -> float:
        """Share of photographs with far < near."""
        return self.lower / self.photographs

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `share`, as if the photographs were a random sample."""
        return interval_of(self.lower, self.photographs)

    @property
    def verdict(self) -> str:
        """`yes` or `no` if the interval is on one side of a half, else `open`."""
        return verdict_of(self.interval)


def interval_of(count: int, n: int) -> tuple[float, float]:
    """95 % interval of the share count / n (Wilson 1927)."""
    p = count / n
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    reach = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    return centre - reach, centre + reach


def verdict_of(interval: tuple[float, float]) -> Literal["yes", "no", "open"]:
    """Whether a share is above a half: `open` if its interval does not tell."""
    low, high = interval
    return "yes" if low > 0.5 else "no" if high < 0.5 else "open"
