"""The compiled training step: a part of its own, because compiling takes most of its time."""

from benchmarks.device import step
from benchmarks.device.record import Part


def measure(part: Part) -> None:
    """The step of lasr train --compile default, as one CUDA graph."""
    step.measure(part, compiled=True)
