"""The sheet of degraded patches."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.data import degradation


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
