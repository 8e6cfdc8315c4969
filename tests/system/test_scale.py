"""The simulation behind docs/scale.md against what can be worked out by hand, and its sums."""

import re
from pathlib import Path

import pytest

from benchmarks.scale.__main__ import ScaleBenchmark, main, sums
from benchmarks.scale.bookkeeping import _run
from benchmarks.scale.simulation import Costs, Machine, seconds
from schemas.manifest import open_manifest
from tests.support.servers import ROOT

STAGES = Costs(read=1, depth=2, crop=3, captions=4, write=5, latency=6)


@pytest.mark.parametrize("gpu", [True, False])
def test_one_photograph_takes_the_sum_of_its_stages(gpu: bool) -> None:
    assert seconds(STAGES, Machine(4, 4, gpu), 1) == 21


@pytest.mark.parametrize(
    ("costs", "machine", "each"),
    [
        (Costs(depth=2, captions=4), Machine(8, 8), 6),  # one network at a time on a GPU
        (Costs(depth=2, captions=4), Machine(8, 8, gpu=False), 6),  # one main thread
        (Costs(read=1, crop=3), Machine(2, 8), 2),  # two threads
        (Costs(read=1, crop=3), Machine(8, 2), 2),  # two cores
        (Costs(latency=6), Machine(3, 1), 2),  # threads wait for storage without a core
        (Costs(write=5), Machine(8, 8), 5),  # one writer
        (Costs(read=1, captions=4), Machine(8, 8, gpu=False), 4),  # reading beside the network
        (Costs(read=4, captions=4), Machine(8, 1, gpu=False), 8),  # both on one core
    ],
)
def test_the_slowest_stage_sets_the_rate(costs: Costs, machine: Machine, each: float) -> None:
    long, short = seconds(costs, machine, 480), seconds(costs, machine, 240)
    assert (long - short) / 240 == pytest.approx(each, rel=0.02)


def test_captions_wait_until_a_call_is_full() -> None:
    few = Costs(captions=1, write=10, patches=16)  # four photographs a call
    assert seconds(few, Machine(8, 8), 4) == 4 + 4 * 10
    assert seconds(few, Machine(8, 8), 5) == max(4 + 4 * 10, 5) + 10


def test_a_made_up_build_is_finished_and_is_published(tmp_path: Path) -> None:
    measured = _run(tmp_path, 300)  # two parts
    assert {"find", "plan again", "publish again", "MB"} <= set(measured)
    assert len(open_manifest(tmp_path / "patches.parquet").files) == 2


def test_the_page_has_the_sums_of_the_command() -> None:
    page = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
    config = ScaleBenchmark()
    columns = [sums(config, number) for number in config.photographs]
    for name in columns[0]:
        row = " | ".join(column[name] for column in columns)
        assert re.search(rf"^\| {re.escape(name)} \| {re.escape(row)} \|$", page, re.M), name
    assert columns[-1]["GPU hours"] == f"{1e9 / 12.4 / 3600:,.0f}"
    assert columns[-1]["rows"] == "16,000,000,000"


def test_the_command_runs_as_typed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--photographs", "1e9"]) == 0
    assert "| GPU hours | 22,401 |" in capsys.readouterr().out
