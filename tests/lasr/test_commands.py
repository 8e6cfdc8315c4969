"""The person at the terminal: help, dry runs, and mistakes answered by one line."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import lasr.doctor.__main__
import lasr.weights.__main__
import pipeline.finetune
import pipeline.query.__main__
import pipeline.report.picture
import pipeline.run
import trainer.evaluate.__main__
import trainer.evaluate.curve
import trainer.evaluate.metrics
import trainer.evaluate.sidebyside
import trainer.export
import trainer.features.__main__
import trainer.run
import trainer.upscale.__main__

COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "pipeline.run": pipeline.run.main,
    "pipeline.query": pipeline.query.__main__.main,
    "pipeline.report.picture": pipeline.report.picture.main,
    "pipeline.finetune": pipeline.finetune.main,
    "trainer.run": trainer.run.main,
    "trainer.upscale": trainer.upscale.__main__.main,
    "trainer.features": trainer.features.__main__.main,
    "trainer.export": trainer.export.main,
    "trainer.evaluate": trainer.evaluate.__main__.main,
    "trainer.evaluate.metrics": trainer.evaluate.metrics.main,
    "trainer.evaluate.sidebyside": trainer.evaluate.sidebyside.main,
    "trainer.evaluate.curve": trainer.evaluate.curve.main,
    "lasr.weights": lasr.weights.__main__.main,
    "lasr.doctor": lasr.doctor.__main__.main,
}


TAKE_WEIGHTS = {
    "pipeline.run", "pipeline.finetune", "trainer.run", "trainer.upscale", "trainer.evaluate",
    "trainer.features", "trainer.export",
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert COMMANDS[name](["--help"]) == 0
    text = capsys.readouterr().out
    assert ("--weights-dir DIR" in text) == (name in TAKE_WEIGHTS)
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("  --"):  # its help stands on this line or the next
            explained = line.split("  ", 2)[-1].strip() or lines[number + 1]
            assert len(explained.split()) > 1, line


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--images", "a", "--k", "0"], "--k 0: input should be greater than or equal to 1"),
        (["--images", "a", "--strategy", "best"], "--strategy best: choose from depth, random, "),
        ([], "--images is required; see `lasr build --help`"),
    ],
)
def test_bad_flags_name_the_flag(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pipeline.run.main(argv) == 2 and message in capsys.readouterr().err


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with nothing in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LASR_WEIGHTS", "")  # so that what --weights-dir sets goes at the end
    monkeypatch.delenv("LASR_WEIGHTS")
    return tmp_path


def one_line(capsys: pytest.CaptureFixture[str], status: int) -> str:
    error = capsys.readouterr().err.splitlines()
    assert status == 1 and error[-1].startswith("error: "), error
    return error[-1]


def test_missing_weights_are_named_with_the_command_that_fetches_them(
    empty: Path, photographs: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = one_line(capsys, pipeline.run.main(["--images", str(photographs)]))
    assert "'depth-anything-v2-small' (99 MB, licence Apache-2.0), " in line
    assert "'clip-vit-l-14' (1711 MB, licence MIT)" in line  # all that is missing at once
    assert "`lasr weights fetch depth-anything-v2-small clip-vit-l-14`" in line
    for more in ([], ["--dry-run"]):
        status = trainer.run.main(["--manifest", str(manifest), *more])
        line = one_line(capsys, status)
        assert "`lasr weights fetch rrdb-psnr-x4 clip-vit-l-14 vgg19`" in line
    argv = ["--images", str(photographs), "--profile", "paper", "--weights-dir", "elsewhere"]
    line = one_line(capsys, pipeline.run.main(argv))
    missing = "depthfm-v1 clip-vit-l-14 sd15-vae"
    assert f"`lasr weights fetch {missing} --weights-dir elsewhere`" in line


def test_mistakes_of_the_pipeline(
    empty: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offline = ["--profile", "offline"]
    for argv, message in [
        (["--images", "nowhere"], "nowhere: no such folder"),
        (["--images", str(photographs), "--dictionary", "no.txt"], "no.txt: the dictionary"),
        (["--images", str(photographs), "--depth", "guess"], "guess: neither a file or folder"),
        (
            ["--images", str(photographs), "--clip", "vgg19"],
            "these are vgg weights, not clip weights",
        ),
    ]:
        assert message in one_line(capsys, pipeline.run.main([*argv, *offline]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_asked_for_in_vain(
    empty: Path, photographs: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cuda = ["--profile", "offline", "--device", "cuda"]
    status = pipeline.run.main(["--images", str(photographs), *cuda])
    assert "--device cuda: PyTorch sees no GPU here" in one_line(capsys, status)
    status = trainer.run.main(["--manifest", str(manifest), *cuda])
    assert "--device cuda: PyTorch sees no GPU here" in one_line(capsys, status)


def test_mistakes_of_the_trainer(
    empty: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = empty / "broken.pth"
    broken.write_bytes(b"nothing")
    for argv, message in [
        (["--manifest", "nowhere.parquet"], "nowhere.parquet: no manifest there; build one with"),
        (["--manifest", str(manifest), "--sr-init", str(broken)], "broken.pth: cannot be read"),
        (["--manifest", str(manifest), "--vgg", str(broken)], "broken.pth: cannot be read"),
        (["--manifest", str(manifest), "--vgg-layers", "conv9_9"], "no layer conv9_9"),
    ]:
        status = trainer.run.main([*argv, "--profile", "offline", "--batch-size", "2"])
        assert message in one_line(capsys, status)


def test_dry_runs_say_what_would_be_done_and_do_nothing(
    empty: Path, photographs: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--images", str(photographs), "--profile", "offline", "--dry-run"]
    assert pipeline.run.main(argv) == 0
    text = capsys.readouterr().out
    assert "7 photographs, 0 done before, 7 to do in 1 parts" in text and "1000 words" in text
    assert trainer.run.main(["--manifest", str(manifest), "--profile", "offline", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "28 lr and" in text and "tiny-clip@built-in" in text
    assert list(empty.iterdir()) == []


def test_weights_list_and_unknown_names(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = lasr.weights.__main__.main
    assert command(["list"]) == 0
    text = capsys.readouterr().out
    assert "CC-BY-NC-4.0 *" in text and "* not for commercial use" in text and "3,464 MB" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "no such weights or profile" in one_line(capsys, command(["fetch", "x"]))


def test_the_overview_picture(
    manifest: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    out = tmp_path / "overview.png"
    argv = ["--manifest", str(manifest), "--images", str(photographs), "--out", str(out)]
    assert pipeline.report.picture.main([*argv, "--photograph", "china.jpg"]) == 0
    assert Image.open(out).size == (1600, 880)
    jpeg = tmp_path / "overview.jpg"
    assert pipeline.report.picture.main([*argv, "--out", str(jpeg)]) == 0
    assert Image.open(jpeg).format == "JPEG"
    bad = [*argv, "--out", str(tmp_path / "overview.txt")]
    assert "give it a name that ends in" in one_line(capsys, pipeline.report.picture.main(bad))
    assert "no photograph 'x.jpg'" in one_line(
        capsys, pipeline.report.picture.main([*argv, "--photograph", "x.jpg"])
    )
