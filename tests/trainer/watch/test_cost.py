"""--dry-run: what it says of a run is what the run then takes."""

import re
from pathlib import Path

import pytest

from tests.support.training import config, flags
from trainer import loop, run
from trainer.watch import cost


@pytest.mark.parametrize("changes", [{}, {"ema": 0.9, "weights_every": 2}])
def test_the_disk_that_a_dry_run_predicts_is_what_the_run_takes(
    changes: dict[str, float], manifest: Path, models: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    settings = config(manifest, models, tmp_path / "run", **changes)
    found: list[cost.Disk] = []
    real = cost.disk
    monkeypatch.setattr(cost, "disk", lambda *a: found.append(real(*a)) or found[0])
    monkeypatch.setattr(cost, "MEASURED", 1)
    assert run.main([*flags(settings), "--dry-run"]) == 0
    assert list(tmp_path.iterdir()) == []  # written nowhere
    out = capsys.readouterr().out
    assert re.search(r"time:  +\d+ s for 4 steps of [\d.e-]+ s, measured", out)
    assert re.search(r"memory: +[\d.]+ [GM]B of this process", out)
    assert re.search(r"disk: .*two checkpoints .* free", out)
    loop.train(settings)

    def size(pattern: str) -> int:
        return sum(path.stat().st_size for path in settings.folder.glob(pattern))

    (predicted,) = found
    assert size("checkpoint*.pt") == pytest.approx(predicted.checkpoints, rel=0.1)
    files = size("model*") + size("encoders*") + size("weights/*")
    assert files == pytest.approx(predicted.weights, rel=0.1)
    assert size("samples/*") <= predicted.samples


def test_a_full_disk_is_foreseen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    needed = cost.Disk(10**15, 10**9, 10**6)
    assert "NOT ENOUGH" in cost._disk_line(needed, tmp_path / "a" / "b")
    assert "NOT ENOUGH" not in cost._disk_line(cost.Disk(4, 1, 1), tmp_path)
