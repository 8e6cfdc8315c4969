"""Sheets and curves out of an evaluation's folder."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.csv
import pytest
from PIL import Image

from lasr.pictures.read import read_rgb
from trainer.evaluate import __main__ as evaluate
from trainer.evaluate import curve, sidebyside
from trainer.evaluate.sidebyside import Crop, most_textured
from trainer.models.rrdb import untrained_rrdb
from trainer.models.save import save_network

pytest.importorskip("pyiqa")


@pytest.fixture(scope="module")
def evaluation(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bicubic and three checkpoints on one crop of a photograph."""
    folder = tmp_path_factory.mktemp("sheets")
    (folder / "hr").mkdir()
    with Image.open(photographs / "chelsea.png") as image:
        image.crop((130, 60, 270, 172)).save(folder / "hr" / "chelsea.png")
    weights, _ = save_network(untrained_rrdb(8, 1, 8), folder)
    for step in (0, 1000, 20000):
        path = folder / "mine" / "weights" / f"step{step:07d}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(weights, path)
    argv = ["--reference", str(folder / "hr"), "--metrics", "psnr", "gmsd"]
    argv += ["--weights", "bicubic", str(folder / "mine" / "weights")]
    assert evaluate.main([*argv, "--out", str(folder / "out")]) == 0
    return folder / "out"


def contains(sheet: np.ndarray, part: np.ndarray) -> bool:
    """Whether `sheet` contains the exact pixels of `part`."""
    height, width = part.shape[:2]
    corners = np.argwhere((sheet[: -height + 1, : -width + 1] == part[0, 0]).all(-1))
    return any(np.array_equal(sheet[y : y + height, x : x + width], part) for y, x in corners)


def test_the_sheet_holds_each_methods_pixels_as_they_are(evaluation: Path, tmp_path: Path) -> None:
    out = tmp_path / "fig.png"
    argv = [str(evaluation), "--crop", "40,30,32,24", "--side", "96", "--out", str(out)]
    assert sidebyside.main([*argv, "--methods", "mine@1000", "bicubic"]) == 0
    sheet = np.asarray(Image.open(out))
    files = [evaluation / "sr" / method / "chelsea.png" for method in ("mine@1000", "bicubic")]
    for file in [*files, evaluation / "reference" / "chelsea.png"]:
        crop = np.asarray(Image.open(file))[30:54, 40:72]
        assert contains(sheet, crop.repeat(3, 0).repeat(3, 1)), file
    assert (sheet == (225, 30, 30)).all(-1).sum() > 60  # the rectangle
    other = np.asarray(Image.open(files[0]))[31:55, 40:72]
    assert not contains(sheet, other.repeat(3, 0).repeat(3, 1))


def test_every_picture_gets_a_sheet_of_its_own(evaluation: Path) -> None:
    assert sidebyside.main([str(evaluation), "--metrics", "none"]) == 0
    bare = Image.open(evaluation / "sheets" / "chelsea.png").size
    assert sidebyside.main([str(evaluation)]) == 0
    told = Image.open(evaluation / "sheets" / "chelsea.png").size
    assert told[1] > bare[1] and told[0] > 700


def test_the_most_textured_square_is_found() -> None:
    picture = np.zeros((80, 120, 3), np.uint8)
    picture[40:60, 70:90] = np.random.default_rng(0).integers(0, 256, (20, 20, 3))
    crop = most_textured(picture, 22)
    assert abs(crop.x - 69) <= 1 and abs(crop.y - 39) <= 1 and crop.width == crop.height == 22
    assert most_textured(picture, 500).height == 80
    assert most_textured(np.zeros((30, 30, 3), np.uint8), 8) == Crop(0, 0, 8, 8)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--pictures", "dog"], "--pictures dog: not in this evaluation; choose among chelsea"),
        (["--methods", "x"], "--methods x: not in this evaluation; choose among bicubic, mine@0"),
        (["--metrics", "lpips"], "--metrics lpips: not in this evaluation"),
        (["--crop", "1,2,3"], "--crop 1,2,3: not a rectangle; give x,y,width,height"),
        (["--crop", "-1,2,3,4"], "--crop -1,2,3,4: not a rectangle"),
        (["--crop", "100,2,64,64"], "--crop: 64x64 at 100,2 exceeds a picture of 140x112"),
    ],
)
def test_mistakes(
    evaluation: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    joined = [f"{argv[0]}={argv[1]}"]  # a value may begin with a minus
    assert sidebyside.main([str(evaluation), *joined]) == 1
    assert message in capsys.readouterr().err


def test_curve_of_checkpoints(
    evaluation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figure8.png"
    assert curve.main([str(evaluation), "--out", str(out), "--metrics", "psnr"]) == 0
    rows = pyarrow.csv.read_csv(tmp_path / "figure8.csv").to_pylist()
    assert [(r["method"], r["step"], r["metric"]) for r in rows] == [
        ("bicubic", None, "psnr"),
        ("mine", 0, "psnr"),
        ("mine", 1000, "psnr"),
        ("mine", 20000, "psnr"),
    ]
    means = pyarrow.csv.read_csv(evaluation / "means.csv").to_pylist()
    expected = {m["method"]: m["mean"] for m in means if m["metric"] == "psnr"}
    assert rows[3]["mean"] == expected["mine@20000"] and rows[0]["mean"] == expected["bicubic"]
    drawn = read_rgb(out)
    assert drawn.shape[-1] > 400 and drawn.std() > 0.05
    capsys.readouterr()
    assert curve.main([str(tmp_path)]) == 1
    assert "scores.parquet: no such file; give a folder" in capsys.readouterr().err
