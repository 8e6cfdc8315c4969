"""Evaluations: one table, resumed after a kill, and every failure named."""

import importlib.metadata
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from lasr.errors import UserError
from lasr.pictures.read import read_rgb
from lasr.weights.digests import sha256
from tests.support import matlab
from tests.support.weights import load_sr
from trainer.evaluate import metrics, scores
from trainer.evaluate.__main__ import main
from trainer.evaluate.methods import parse_methods
from trainer.evaluate.resize import enlarge, reduce
from trainer.evaluate.scores import Cache
from trainer.models.rrdb import untrained_rrdb
from trainer.models.save import save_network
from trainer.sheets import to_uint8
from trainer.upscale.tiles import upscale

pytest.importorskip("pyiqa")
PYIQA = importlib.metadata.version("pyiqa")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(untrained_rrdb(8, 1, 8), tmp_path_factory.mktemp("mine"))[0]


@pytest.fixture
def references(photographs: Path, tmp_path: Path) -> Path:
    """Two crops of photographs; one is no multiple of 4."""
    folder = tmp_path / "hr"
    folder.mkdir()
    for name, size in (("chelsea", (96, 80)), ("coffee", (103, 90))):
        with Image.open(photographs / f"{name}.png") as image:
            image.convert("RGB").crop((150, 60, 150 + size[0], 60 + size[1])).save(
                folder / f"{name}.png"
            )
    return folder


def rows(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pyarrow.parquet.read_table(out / "scores.parquet").to_pylist()
    return found


def score(out: Path, method: str, image: str, metric: str) -> float:
    (row,) = [
        r for r in rows(out) if (r["method"], r["image"], r["metric"]) == (method, image, metric)
    ]
    return float(row["score"])


def run(out: Path, *argv: object) -> int:
    return main([*map(str, argv), "--out", str(out)])


def test_bicubic_of_references_alone_equals_matlabs(references: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = ["--reference", references, "--weights", "bicubic", "--metrics", "psnr", "ssim"]
    assert run(out, *argv) == 0
    for name, (width, height) in (("chelsea", (96, 80)), ("coffee", (100, 88))):
        hr = np.asarray(Image.open(references / f"{name}.png"), dtype=np.float64)[:height, :width]
        lr = matlab.uint8(matlab.imresize(hr, 1 / 4))
        sr = matlab.uint8(matlab.imresize(lr, 4))
        assert np.abs(np.asarray(Image.open(out / "lr" / f"{name}.png")) - lr).max() == 0
        a, b = (matlab.luma(p)[4:-4, 4:-4] for p in (hr, sr))
        assert score(out, "bicubic", name, "psnr") == pytest.approx(matlab.psnr(a, b), abs=2e-3)
        assert score(out, "bicubic", name, "ssim") == pytest.approx(matlab.ssim(a, b), abs=2e-5)


def test_luma_is_the_protocol_of_srcnn(references: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = ["--reference", references, "--weights", "bicubic", "--metrics", "psnr", "ssim"]
    assert run(out, *argv, "--protocol", "luma") == 0
    hr = matlab.luma(np.asarray(Image.open(references / "chelsea.png"), dtype=np.float64))
    sr = matlab.uint8(matlab.imresize(matlab.imresize(hr, 1 / 4), 4))  # LR is not rounded
    a, b = hr[4:-4, 4:-4], sr[4:-4, 4:-4]
    assert score(out, "bicubic", "chelsea", "psnr") == pytest.approx(matlab.psnr(a, b), abs=2e-3)
    assert score(out, "bicubic", "chelsea", "ssim") == pytest.approx(matlab.ssim(a, b), abs=2e-5)


def other_method(references: Path, folder: Path) -> Path:
    """Outputs as another program would leave them: its suffix, one of a wrong size, one missing."""
    folder.mkdir()
    picture = read_rgb(references / "chelsea.png")
    Image.fromarray(to_uint8(picture * 0.9)).save(folder / "chelsea_out.png")
    Image.new("RGB", (100, 87)).save(folder / "coffee_out.png")
    return folder


def test_any_number_of_methods_in_one_table(
    weights: Path, references: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "out", other_method(references, tmp_path / "other")
    argv = ["--reference", references, "--weights", "bicubic", f"ours={weights}"]
    argv += ["--outputs", f"Other={other}", "--metrics", "psnr", "gmsd", "piqe"]
    assert run(out, *argv) == 1  # one output has a wrong size: said, and the others are scored
    text = capsys.readouterr()
    assert "Other, coffee: " in text.err
    assert "coffee_out.png: is 100x87, but its reference is 100x88; give an output" in text.err
    assert {(r["method"], r["image"]) for r in rows(out)} == {
        (m, i) for m in ("bicubic", "ours", "Other") for i in ("chelsea", "coffee")
    } - {("Other", "coffee")}
    # The network's output is what trainer.upscale makes, and is what was scored.
    lr = read_rgb(out / "lr" / "chelsea.png")
    sr = upscale(load_sr(str(weights)), lr, 256)
    assert (out / "sr" / "ours" / "chelsea.png").is_file()
    written = np.asarray(Image.open(out / "sr" / "ours" / "chelsea.png"))
    assert np.array_equal(written, to_uint8(sr))
    lines = (out / "means.md").read_text().splitlines()
    cells = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines if "|" in line}
    heads = [cell.strip() for cell in cells["Method"]]
    assert heads == ["PSNR ↑", "gmsd ↓", "PIQE ↓", "Params (M)", "Runtime (s)", "Images"]
    ours, theirs = ([c.strip() for c in cells[m]] for m in ("ours", "Other"))
    parameters = sum(p.numel() for p in load_sr(str(weights)).parameters())
    assert float(ours[3]) == pytest.approx(parameters / 1e6, rel=0.01) and float(ours[4]) > 0
    assert theirs[3:] == ["-", "-", "1"] and ours[5] == "2"
    psnr = [score(out, "ours", i, "psnr") for i in ("chelsea", "coffee")]
    assert float(ours[0]) == pytest.approx(np.mean(psnr), abs=0.005)
    assert f"- PSNR: pyiqa {PYIQA}, Y of ycbcr, border 4, CPU" in lines
    assert lines[0] in text.out
    means = pyarrow.csv.read_csv(out / "means.csv").to_pylist()
    (mean,) = [m for m in means if (m["method"], m["metric"]) == ("ours", "psnr")]
    assert mean["mean"] == pytest.approx(np.mean(psnr)) and mean["images"] == 2
    assert mean["metric_version"] == PYIQA and mean["device"] == "CPU"
    assert pyarrow.csv.read_csv(out / "scores.csv").num_rows == len(rows(out)) == 15
    assert pyarrow.parquet.read_schema(out / "means.parquet").names == list(mean)


def test_a_rerun_computes_nothing_and_stale_scores_are_not_used(
    weights: Path, references: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    for path in references.iterdir():
        with Image.open(path) as image:
            image.crop((0, 0, image.width // 4 * 4, image.height // 4 * 4)).save(other / path.name)
    mine = tmp_path / "net.safetensors"
    shutil.copy(weights, mine)
    argv = ["--reference", references, "--weights", mine, "--outputs", other, "--metrics", "psnr"]
    assert run(out, *argv) == 0
    before = rows(out)
    computed: list[str] = []
    compute = metrics.Metric.score

    def counted(self: metrics.Metric, *pair: torch.Tensor) -> float:
        computed.append(self.name)
        return compute(self, *pair)

    monkeypatch.setattr(metrics.Metric, "score", counted)
    assert run(out, *argv) == 0 and computed == [] and rows(out) == before
    made = {p: p.stat().st_mtime_ns for p in (out / "sr").rglob("*.png")}
    assert run(out, *argv, "--crop-border", 0) == 0 and len(computed) == 4  # another convention
    assert made == {p: p.stat().st_mtime_ns for p in (out / "sr").rglob("*.png")}
    computed.clear()
    Image.new("RGB", (96, 80), "red").save(other / "chelsea.png")  # another output
    assert run(out, *argv) == 0 and len(computed) == 1
    computed.clear()
    with Image.open(references / "coffee.png") as image:  # another reference, and so another LR
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(references / "coffee.png")
    assert run(out, *argv) == 0 and len(computed) == 2
    computed.clear()
    save_network(untrained_rrdb(8, 1, 8, seed=1), tmp_path, "net")  # other weights, same name
    assert run(out, *argv) == 0 and len(computed) == 2
    computed.clear()
    cut = out / "sr" / "net" / "chelsea.png"
    cut.write_bytes(cut.read_bytes()[:-99])  # made anew, and the same
    assert run(out, *argv) == 0 and len(computed) == 0


def test_an_evaluation_of_version_0_1_0_goes_on(references: Path, tmp_path: Path) -> None:
    """It put no mark into pictures and tables."""
    out = tmp_path / "out"
    argv = ["--reference", references, "--weights", "bicubic", "--metrics", "psnr"]
    assert run(out, *argv) == 0
    for path in out.rglob("*.png"):
        with Image.open(path) as image:
            image.convert("RGB").save(path)
    log = out / "sr" / "bicubic" / "made.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line, name in zip(lines, ("chelsea", "coffee"), strict=True):
        line["output"] = sha256(log.with_name(f"{name}.png"))
        del line["digest"]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for path in out.glob("*.parquet"):
        table = pyarrow.parquet.read_table(path)
        pyarrow.parquet.write_table(table.replace_schema_metadata(None), path)
    text = (out / "means.md").read_text()
    (out / "means.md").write_text("".join(text.splitlines(keepends=True)[:-1]))
    before = {path: path.read_bytes() for path in (out / "sr").rglob("*.png")}
    for _ in range(2):  # the first run puts marks in
        assert run(out, *argv) == 0
    assert before == {path: path.read_bytes() for path in (out / "sr").rglob("*.png")}
    foreign = out / "lr" / "chelsea.png"
    Image.new("RGB", (24, 20), "red").save(foreign)
    precious = foreign.read_bytes()
    assert run(out, *argv) == 1 and foreign.read_bytes() == precious


def test_another_reference_alone_makes_scores_stale(references: Path, tmp_path: Path) -> None:
    out, images = tmp_path / "out", tmp_path / "lr"
    images.mkdir()
    (references / "coffee.png").unlink()
    lr = reduce(read_rgb(references / "chelsea.png"), 4)
    Image.fromarray(to_uint8(lr)).save(images / "chelsea_LR4.png")
    argv = ["--images", images, "--reference", references, "--weights", "bicubic"]
    argv += ["--metrics", "psnr"]
    assert run(out, *argv) == 0
    before = score(out, "bicubic", "chelsea_LR4", "psnr")
    assert 15 < before < 45
    Image.new("RGB", (96, 80), "white").save(references / "chelsea.png")
    assert run(out, *argv) == 0
    assert score(out, "bicubic", "chelsea_LR4", "psnr") < 15
    os.rename(references / "chelsea.png", references / "dog.png")
    assert run(out, *argv) == 1  # no reference has its name any more


def test_a_kill_loses_one_score_at_most(
    references: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    argv = ["--reference", references, "--weights", "bicubic", "--metrics", "psnr", "gmsd"]
    assert run(out, *argv) == 0
    expected = rows(out)
    shutil.rmtree(out)
    add, added = Cache.add, []

    def killed(self: Cache, key: str, value: dict[str, Any]) -> None:
        add(self, key, value)
        added.append(key)
        if len(added) == 4:  # two pictures' outputs, or scores, on the disk
            raise KeyboardInterrupt

    monkeypatch.setattr(Cache, "add", killed)
    assert run(out, *argv) == 130 and not (out / "scores.parquet").exists()
    with (out / "scores.jsonl").open("ab") as file:
        file.write(b'{"key": "torn')
    assert run(out, *argv) == 0
    assert len(added) == len(set(added)) == 2 + 4  # outputs and scores, each computed once
    timeless = [{k: v for k, v in r.items() if k != "seconds"} for r in rows(out)]
    assert timeless == [{k: v for k, v in r.items() if k != "seconds"} for r in expected]


def test_no_reference(
    weights: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real pictures: only metrics that need no reference; those without weights are named."""
    images, out = tmp_path / "real", tmp_path / "out"
    images.mkdir()
    with Image.open(photographs / "china.jpg") as image:
        image.crop((100, 100, 140, 130)).save(images / "ä b.png")
    argv = ["--images", images, "--weights", f"ours={weights}", "--passes", 2]
    assert run(out, *argv, "--metrics", "piqe", "musiq") == 1
    assert "fetch musiq" in capsys.readouterr().err
    assert [(r["image"], r["metric"]) for r in rows(out)] == [("ä b", "piqe")]
    assert Image.open(out / "sr" / "ours" / "ä b.png").size == (640, 480)
    wrong = tmp_path / "x4"
    wrong.mkdir()
    Image.new("RGB", (160, 120)).save(wrong / "ä b.png")
    assert run(out, *argv, "--metrics", "piqe", "--outputs", wrong) == 1
    assert "is 160x120, but 16 times the LR picture is 640x480" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--images", "{hr}"], "no method to score: give --weights, --outputs or both"),
        (["--weights", "bicubic"], "no pictures: give --images, --reference or both"),
        (
            ["--images", "{hr}", "--weights", "bicubic", "--metrics", "psnr"],
            "--metrics psnr: needs --reference",
        ),
        (
            ["--images=x", "--reference=x", "--weights=bicubic", "--protocol=luma"],
            "leave --images out",
        ),
    ],
)
def test_bad_flags(
    references: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main([part.format(hr=references) for part in argv])
    assert status == 2 and message in capsys.readouterr().err


def test_mistakes_get_one_line(
    references: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twins = tmp_path / "twins"
    twins.mkdir()
    for name in ("chelsea_out.png", "chelsea_sr.png"):
        Image.new("RGB", (8, 8)).save(twins / name)
    base = ["--reference", references, "--metrics", "psnr"]
    for argv, message in [
        ([*base, "--weights", "nonsense"], "nonsense: neither a file or folder nor known sr"),
        ([*base, "--weights", "bicubic", "bicubic"], "method bicubic is given 2 times"),
        ([*base, "--weights", references], "has neither model.safetensors nor step"),
        ([*base, "--outputs", "A=nowhere"], "--outputs nowhere: no such folder"),
        ([*base, "--outputs", twins], "chelsea_out.png, chelsea_sr.png all match chelsea"),
        (["--reference", "nowhere", "--weights", "bicubic"], "nowhere: no such folder, file"),
        ([*base, "--weights", "../up=bicubic"], "its name cannot be a folder's"),
    ]:
        assert run(tmp_path / "out", *argv) == 1
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert run(tmp_path / "out", *base[:2], "--weights", "bicubic", "--metrics", "nonsense") == 1
    assert "--metrics nonsense: no such metric" in capsys.readouterr().err


def test_a_metric_of_ones_own_needs_one_entry(
    references: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the README of trainer/evaluate shows it; scores are cached by the entry's version."""
    readme = Path(metrics.__file__).with_name("README.md").read_text()
    code = readme.split("```python")[2].split("```")[0]
    entry = eval(f"{{{code}}}", vars(metrics))["colour-shift"]
    monkeypatch.setitem(metrics.METRICS, "colour-shift", entry)
    out = tmp_path / "out"
    argv = ["--reference", references, "--weights", "bicubic", "--metrics", "colour-shift", "psnr"]
    assert run(out, *argv) == 0
    sr, hr = (read_rgb(out / p / "coffee.png") for p in ("sr/bicubic", "reference"))
    expected = float((sr.mean((1, 2)) - hr.mean((1, 2))).abs().mean())
    assert score(out, "bicubic", "coffee", "colour-shift") == expected
    lines = (out / "means.md").read_text().splitlines()
    assert "Colour shift ↓" in lines[0] and "- Colour shift: version 1, CPU" in lines
    other = replace(entry, compute=lambda sr, hr: 7.0)
    monkeypatch.setitem(metrics.METRICS, "colour-shift", other)
    assert run(out, *argv) == 0
    assert score(out, "bicubic", "coffee", "colour-shift") == expected  # from the cache
    monkeypatch.setitem(metrics.METRICS, "colour-shift", replace(other, version=2))
    assert run(out, *argv) == 0
    assert score(out, "bicubic", "coffee", "colour-shift") == 7


def test_methods_of_files_folders_and_checkpoints(weights: Path, tmp_path: Path) -> None:
    kept = tmp_path / "fine" / "weights"
    kept.mkdir(parents=True)
    for step in (20000, 500):
        shutil.copy(weights, kept / f"step{step:07d}.safetensors")
    shutil.copy(weights, tmp_path / "fine" / "model.safetensors")
    texts = ["bicubic", str(weights), str(kept), f"v2={kept}", str(tmp_path / "fine"), "a=b.pth"]
    names = [method.name for method in parse_methods(texts, [f"S={tmp_path}", str(kept)])]
    steps = ["fine@500", "fine@20000", "v2@500", "v2@20000"]
    assert names == ["bicubic", weights.parent.name, *steps, "fine", "a", "S", "weights"]
    (kept / "step-last.safetensors").touch()
    with pytest.raises(UserError, match=r"step-last\.safetensors: no training step in its name"):
        parse_methods([str(kept)], [])


def test_scores_say_what_they_are(references: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out, "--reference", references, "--weights", "bicubic", "--metrics", "psnr")
    assert [s.score for s in scores.read(out)] == [r["score"] for r in rows(out)]
    assert pyarrow.parquet.read_schema(out / "scores.parquet").equals(scores.SCHEMA)
    record = json.loads((out / "scores.jsonl").read_text().splitlines()[0])
    assert record["key"].startswith(f"psnr; pyiqa {PYIQA}; Y of ycbcr, border 4: ")
    with pytest.raises(
        UserError, match=r"scores\.parquet: no such file; give a folder that `lasr evaluate` wrote"
    ):
        scores.read(tmp_path)
    assert os.listdir(out / "sr") == ["bicubic"]
    picture = read_rgb(out / "lr" / "chelsea.png")
    assert reduce(enlarge(picture, 4), 4).shape == picture.shape
