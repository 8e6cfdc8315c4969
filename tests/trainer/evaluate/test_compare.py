"""The sheet of far patches: which patches, and whose pixels."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from schemas.manifest import open_manifest
from tests.support.weights import load_rrdb
from trainer.data.dataset import COLUMNS, Patches
from trainer.evaluate.compare import main, most_textured

GAP, TITLE = 6, 20  # of trainer.sheets


def test_the_most_textured_patch_of_each_photograph_comes_first(manifest: Path) -> None:
    rows = [row for row in pq.read_table(manifest).to_pylist() if row["role"] == "lr"]
    best = {}
    for row in rows:
        best.setdefault(row["image_id"], []).append(row["texture"])
    first = sorted((max(found) for found in best.values()), reverse=True)
    second = sorted((sorted(f)[-2] for f in best.values() if len(f) > 1), reverse=True)
    chosen = most_textured(open_manifest(manifest, COLUMNS), len(first) + len(second))
    table = pq.read_table(manifest, columns=["role", "texture"]).take(chosen).to_pylist()
    assert {row["role"] for row in table} == {"lr"}
    assert [row["texture"] for row in table] == [*first, *second]


def test_columns_are_the_patches_and_what_networks_make_of_them(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sheet.png"
    weights = [f"{name}={models / 'sr.safetensors'}" for name in ("first", "second")]
    argv = ["--manifest", str(manifest), "--weights", *weights, "--patches", "2", "--out", str(out)]
    assert main(argv) == 0
    with Image.open(out) as image:
        sheet = np.asarray(image.convert("RGB"))
    cells = [
        [sheet[y : y + 224, x : x + 224] for x in range(GAP, sheet.shape[1] - 224, 224 + GAP)]
        for y in range(TITLE + GAP, sheet.shape[0] - 224, 224 + GAP)
    ]
    assert len(cells) == 2 and {len(row) for row in cells} == {4}
    opened = open_manifest(manifest, COLUMNS)
    pixels = Patches(opened).pixels("lr", most_textured(opened, 2))
    network = load_rrdb(models / "sr.safetensors")
    for row, patch in zip(cells, pixels, strict=True):
        assert np.array_equal(row[0][::4, ::4], patch)
        batch = torch.from_numpy(patch.copy()).permute(2, 0, 1)[None] / 255
        enlarged = np.asarray(Image.fromarray(patch).resize((224, 224), Image.Resampling.BICUBIC))
        with torch.no_grad():
            made = network(batch).clamp(0, 1)[0].permute(1, 2, 0).numpy() * 255
        for cell, expected in zip(row[1:], (enlarged, made, made), strict=True):
            assert np.abs(cell - expected.astype(float)).max() <= 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--out", "sheet.jpg"], "sheet.jpg: not the name of a PNG"),
        (["--weights", "nothing"], "nothing: neither a file or folder nor known sr weights"),
        (["--weights", "a=bicubic", "a=vgg19"], "method a is given 2 times"),
    ],
)
def test_mistakes_are_one_line(
    argv: list[str], said: str, manifest: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--manifest", str(manifest), "--weights", str(models / "sr.safetensors")]
    assert main([*given, *argv]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
