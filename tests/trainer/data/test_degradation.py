"""Which patches are degraded how, and the sheet that shows it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from schemas.manifest import open_manifest
from trainer.config import Degradation
from trainer.data import dataset, degradation
from trainer.data.dataset import COLUMNS, Patches


def test_the_sheet_shows_patches_and_degradations(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sheet.png"
    argv = ["--manifest", str(manifest), "--out", str(out), "--patches", "2", "--draws", "3"]
    assert degradation.main(argv) == 0
    with Image.open(out) as sheet:
        assert sheet.width == 4 * (3 * 56 + 6) + 6 and sheet.height == 2 * (3 * 56 + 6) + 6 + 20
        columns = [np.asarray(sheet.crop((x, 26, x + 168, 194))) for x in (6, 180, 354)]
    assert len({c.tobytes() for c in columns}) == 3
    assert degradation.main(["--manifest", str(tmp_path / "none.parquet")]) == 1
    assert "no manifest there" in capsys.readouterr().err


def test_a_patch_is_degraded_anew_in_each_epoch_and_for_each_seed(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without turning it, the same patch differs by its degradation alone, and hardly twice."""
    monkeypatch.setattr(dataset, "flip_and_rotate", lambda pixels, which: pixels)

    def drawn(degradation: Degradation) -> dict[int, list[bytes]]:
        """Row -> its pictures in two epochs of two seeds."""
        found: dict[int, list[bytes]] = {}
        for seed in (0, 1):
            patches = Patches(open_manifest(manifest, COLUMNS), seed, degradation)
            for epoch in (0, 1):
                batch = patches.batch(epoch, len(patches))
                for row, picture in zip(batch.lr_rows, batch.lr, strict=True):
                    found.setdefault(row, []).append(picture.numpy().tobytes())
        return found

    plain, degraded = drawn("none"), drawn("realesrgan")
    assert {len(set(pictures)) for pictures in plain.values()} == {1}
    assert {len(set(pictures)) for pictures in degraded.values()} == {4}
