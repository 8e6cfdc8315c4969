"""The values of the losses where nothing is learned, and the least they can have."""

import math
from dataclasses import dataclass

from trainer.config import TrainConfig


@dataclass(frozen=True)
class Bounds:
    """collapse: all features are one, or nothing tells anything. optimum: nothing is better."""

    collapse: float | None
    optimum: float


def bounds(config: TrainConfig) -> dict[str, Bounds]:
    """The bounds of each loss by its name in stats.jsonl.

    Equations (1) and (2) are Cont of M pairs. With all cosines equal it is log(M - 1). Its least
    value is that of a regular simplex, where pairs agree and all others have the cosine
    -1 / (M - 1). Equation (3) has one text for all low and one for all high rows: its least value
    is that of opposite texts.
    """
    n = config.batch_size
    low = n + round(config.sr_as_low_quality * n)
    collapse = math.log(low + n - 1)
    apart = math.exp(-2)  # e to the cosine of the other text, over that of the own
    quality = (low * _log(low - 1 + n * apart) + n * _log(n - 1 + low * apart)) / (low + n)
    return {
        "content_encoders": _cont(2 * n),
        "content_sr": _cont(n),
        "quality_encoders": Bounds(collapse, quality),
        "quality_sr": Bounds(0.0, -2.0),
        "vgg": Bounds(None, 0.0),
        "consistency": Bounds(None, 0.0),
    }


def _cont(pairs: int) -> Bounds:
    collapse = _log(pairs - 1)
    return Bounds(collapse, collapse - 1 - 1 / (pairs - 1))


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
