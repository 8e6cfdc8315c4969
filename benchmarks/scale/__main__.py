"""What a build of up to 10^9 photographs takes: time, storage, requests, memory, money.

    python -m benchmarks.scale                         # the sums of docs/scale.md
    python -m benchmarks.scale --check 24              # the simulation against the code: minutes
    python -m benchmarks.scale --bookkeeping 4096      # finding, planning and publishing, measured

A machine's rate comes from a simulation of its threads, cores, networks and storage
(`benchmarks.scale.simulation`). `--check` runs the code's own threads and queues with stages that
sleep, and the one build that was measured on a GPU is printed beside its simulation. Prices are
examples: give your own.
"""

import sys

from pydantic import BaseModel, Field

from benchmarks.scale.bookkeeping import measure
from benchmarks.scale.check import compare
from benchmarks.scale.simulation import Costs, Machine, seconds
from lasr.cli import Command

# docs/benchmarks.md, one H200 with 16 cores, photographs of 2040 pixels: calls of the depth network
# 47 ms, 16 patches at 1,449 a second, less than 4 of 16 cores busy. The cores' share is divided
# between reading and cutting out as on one core of a CPU (docs/benchmarks.md).
H200 = Costs(read=0.10, depth=0.047, crop=0.15, captions=0.011, write=0.005)
MEASURED_RATE = 12.4  # photographs a second
PART = 256  # photographs
GB, TB, HOUR, DAY = 1e9, 1e12, 3600, 86400


class ScaleBenchmark(BaseModel):
    """Parameters of `benchmarks.scale`."""

    photographs: list[float] = Field([1e5, 1e6, 1e8, 1e9], description="sizes to compute")
    rate: float = Field(MEASURED_RATE, description="photographs a second of one GPU machine")
    patch_mb: float = Field(0.05, description="of a row (pipeline/build/plan.py)")
    photograph_mb: float = Field(1.0, description="of a photograph's file: an assumption")
    patches: int = Field(16, description="patches of a photograph")
    plan_ms: float = Field(0.12, description="CPU of a finished photograph (benchmarks.rerun)")
    plan_kb: float = Field(5.0, description="memory of a photograph that is finished")
    task_ms: float = Field(250.0, description="Prefect's time for a task in a process of its own")
    gpu_hour: float = Field(3.0, description="price of a GPU machine's hour")
    gb_month: float = Field(0.02, description="price of storing a GB for a month")
    million_reads: float = Field(0.4, description="price of a million requests that read")
    million_writes: float = Field(5.0, description="price of a million requests that write")
    check: int = Field(0, description="photographs of each case that is run with sleeping stages")
    slower: float = Field(10.0, description="factor of the sleeping stages: for busy machines")
    bookkeeping: list[int] = Field([], description="sizes at which to measure the bookkeeping")


def shard_rate(costs: Costs, machine: Machine, photographs: int = PART) -> float:
    """Photographs a second of a machine that makes one shard after the other."""
    return photographs / seconds(costs, machine, photographs)


def sums(config: ScaleBenchmark, photographs: float) -> dict[str, str]:
    """What a build of that many photographs takes, by name."""
    gpu_hours = photographs / config.rate / HOUR
    parts = photographs / PART
    rows = photographs * config.patches
    stored = photographs * config.patches * config.patch_mb / 1000  # GB
    features = photographs * config.patches * 768 * 4 / GB
    maps = photographs * 518 * 784 * 2 / GB
    reads, writes = 4 * photographs + 12 * parts, 2 * photographs + 8 * parts
    unchanged = photographs * config.plan_ms / 1000 / HOUR
    money = {
        "GPU": gpu_hours * config.gpu_hour,
        "requests": (reads * config.million_reads + writes * config.million_writes) / 1e6,
        "month": (stored + features + maps) * config.gb_month,
    }
    return {
        "GPU hours": f"{gpu_hours:,.0f}",
        "GPUs for a week": f"{max(1, gpu_hours / 168):,.0f}",
        "photographs, TB": f"{photographs * config.photograph_mb / 1e6:,.1f}",
        "rows": f"{rows:,.0f}",
        "parts": f"{parts:,.0f}",
        "manifest, TB": f"{stored / 1000:,.1f}",
        "cached features and maps, TB": f"{features / 1000:,.1f} + {maps / 1000:,.1f}",
        "requests, millions": f"{(reads + writes) / 1e6:,.1f}",
        "CPU hours of a rerun that changes nothing": f"{unchanged:,.1f}",
        "memory of the plan, GB": f"{photographs * config.plan_kb / 1e6:,.1f}",
        "hours of Prefect's tasks": f"{parts * config.task_ms / 1e3 / HOUR:,.1f}",
        "days to read all rows at 2,721 a second": f"{rows / 2721 / DAY:,.1f}",
        "price: GPU, requests, a month of storage": ", ".join(f"{x:,.0f}" for x in money.values()),
    }


def run(config: ScaleBenchmark) -> None:
    """Print checks, or the sums."""
    if config.check:
        for name, measured, simulated in compare(config.check, config.slower):
            ratio = measured / simulated
            print(
                f"{name:34} measured {measured:6.2f} s  simulated {simulated:6.2f} s  {ratio:.2f}"
            )
    for number in config.bookkeeping:
        steps = measure(number)
        memory = steps.pop("MB")
        for name, cpu in steps.items():
            print(f"{number:>8} photographs  {name:26} {1e3 * cpu / number:.3f} ms CPU each")
        print(f"{number:>8} photographs  memory {1024 * memory / number:.1f} kB each")
    if config.check or config.bookkeeping:
        return
    simulated = shard_rate(H200, Machine(16, 16), 64)
    print(f"H200, two shards of 64: measured {MEASURED_RATE}/s, simulated {simulated:.1f}/s")
    for latency in (0.005, 0.05, 0.2):
        far = Costs(H200.read, H200.depth, H200.crop, H200.captions, H200.write, 6 * latency)
        rates = [f"{n}: {shard_rate(far, Machine(n, 16)):.1f}/s" for n in (8, 16, 64)]
        print(f"six requests of {1e3 * latency:.0f} ms, threads and rate: {', '.join(rates)}")
    columns = [sums(config, number) for number in config.photographs]
    print("| | " + " | ".join(f"{number:.0e}" for number in config.photographs) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(column[name] for column in columns) + " |")


main = Command(ScaleBenchmark, run, name="python -m benchmarks.scale", about=__doc__)

if __name__ == "__main__":
    sys.exit(main())
