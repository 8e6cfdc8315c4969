"""run.html: one file that needs nothing else, for runs of any length."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lasr.ownership import is_ours
from tests.support.training import config
from trainer import loop
from trainer.evaluate import curve
from trainer.sheets import sheet_tiles, write_comparison
from trainer.watch.curves import averaged, chart, ticks
from trainer.watch.page import build_page, findings, write_page


def make_run(folder: Path, lines: list[dict[str, Any]], **settings: Any) -> Path:
    folder.mkdir(parents=True)
    plain = {"manifest": "m.parquet", "steps": 100, "batch_size": 4, "weights": {"clip": "a@1"}}
    (folder / "config.json").write_text(json.dumps(plain | {"manifest_identity": "x"} | settings))
    (folder / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


LOOK = {"kind": "validation", "niqe_held_out": 9.0, "quality_as_is": 1.0,
        "quality_equal_size": 0.6, "bicubic_called_good": 0.7, "score": -0.1}  # fmt: skip


def test_a_page_needs_nothing_else_and_escapes_what_it_shows(tmp_path: Path) -> None:
    lines = [{"step": 1, "content_encoders": 2.0}, LOOK | {"step": 1}, LOOK | {"step": 2}]
    folder = make_run(tmp_path / "<script>x", lines, good=["<b>"], manifest="a&b.parquet")
    assert write_page(folder) and is_ours(folder / "run.html")
    page = (folder / "run.html").read_text()
    assert not re.search(r"<script|https?:|src=\"(?!data:)|url\(|@import|<link", page)
    assert "&lt;script&gt;x" in page and "&lt;b&gt;" in page and "a&amp;b.parquet" in page
    assert "default-src 'none'" in page
    assert "collapse</text>" in re.sub(r"<title>.*?</title>", "", page)
    assert "collapse 1.95" in page  # log(2 * 4 - 1)
    assert "judge by size" in page


def test_an_edited_page_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_run(tmp_path / "run", [{"step": 1, "total": 2.0}])
    assert write_page(folder) and write_page(folder)
    path = folder / "run.html"
    path.write_text(path.read_text().replace("Settings", "My notes"))
    assert not write_page(folder)
    assert "My notes" in path.read_text() and "stays as it is" in caplog.text


def test_a_page_that_fails_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_run(tmp_path / "run", [])
    monkeypatch.setattr("trainer.watch.page.build_page", lambda _: 1 / 0)
    assert not write_page(folder)
    assert "cannot be written (division by zero)" in caplog.text


def test_the_page_of_a_run_and_again_by_command(
    manifest: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(manifest, models, tmp_path / "run", steps=2)
    loop.train(settings)
    page = (settings.folder / "run.html").read_text()
    assert "Step 2 of 2" in page and "Content, encoders (1)" in page
    assert page.count('src="data:image/webp') == 9 and page.count('src="data:image/png') == 3
    assert "This run is not validated" in page
    (settings.folder / "run.html").unlink()
    assert curve.main([str(settings.folder)]) == 0
    assert (settings.folder / "run.html").is_file() and "run.html" in capsys.readouterr().out
    assert curve.main([str(settings.folder), "--out", str(tmp_path / "x.png")]) == 1
    assert "is a run, whose page is run.html" in capsys.readouterr().err


def test_the_page_of_pretraining_shows_its_curves(tmp_path: Path) -> None:
    folder = make_run(
        tmp_path / "run", [{"step": 1, "l1": 0.1}, {"step": 1, "psnr_y_held_out": 30.0}]
    )
    config_json = folder / "config.json"
    plain = {"images": ["photos"], "steps": 5, "weights": {}, "images_identity": "x"}
    config_json.write_text(json.dumps(plain))
    page = build_page(folder)
    assert "Pretraining on photos" in page and "L1" in page and "PSNR on Y" in page
    assert ">collapse" not in page


def test_long_runs_are_averaged_and_keep_their_ends() -> None:
    points = [(step, float(step % 7)) for step in range(1, 30_001)]
    shown = averaged(points)
    assert len(shown) <= 400 and shown[0] == points[0] and shown[-1] == points[-1]
    assert sum(value for _, value in shown[1:-1]) / (len(shown) - 2) == pytest.approx(3, abs=0.05)
    drawn = chart("t", "a", {"x": points}, {"optimum": -1.0, "never": float("-inf")}, best=15_000)
    assert drawn and [rule.label for rule in drawn.rules] == ["optimum"]
    assert drawn.marker == pytest.approx(170)  # the middle of 340
    numbers = [float(n) for n in re.findall(r"-?[\d.]+", drawn.lines[0].path)]
    assert min(numbers) >= 0 and max(numbers) <= 340
    assert chart("t", "a", {"x": []}) is None
    assert ticks(0, 10, 4) == [0, 5, 10] and ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1]


def test_findings_say_when_encoders_judge_by_size() -> None:
    first, last = LOOK | {"step": 0}, LOOK | {"step": 5, "niqe_held_out": 7.0}
    said = findings([first, last])
    assert said[0] == "NIQE: 9 → 7 (held-out patches)"
    assert "100% as they are, 60% at equal size. They judge by size" in said[1]
    assert findings([]) == []


def test_tiles_of_a_sheet_are_what_was_drawn(tmp_path: Path) -> None:
    import torch

    lr, sr = torch.rand(3, 3, 8, 8), torch.rand(3, 3, 32, 32)
    write_comparison(tmp_path / "a.png", lr, sr)
    with Image.open(tmp_path / "a.png") as sheet:
        columns = sheet_tiles(sheet.convert("RGB"))
    assert [len(column) for column in columns] == [3, 3, 3]
    for tile, picture in zip(columns[2], sr, strict=True):
        expected = picture.mul(255).round().byte().permute(1, 2, 0)
        assert torch.equal(torch.tensor(list(tile.getdata())).view(32, 32, 3), expected.long())
    with pytest.raises(ValueError):
        sheet_tiles(Image.new("RGB", (100, 50)))
