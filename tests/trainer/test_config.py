"""The settings of a run: the paper's defaults, and flags that answer without loading a network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import ROOT
from trainer.config import MAY_CHANGE, TrainConfig
from trainer.run import main


def test_the_defaults_are_the_papers() -> None:
    """Section 4 and equation (5)."""
    config = TrainConfig(manifest=Path("data/patches.parquet"))
    assert (config.steps, config.batch_size, config.lr) == (300_000, 16, 5e-5)
    assert (config.weight_content, config.weight_quality, config.weight_vgg) == (0.5, 0.5, 0.1)
    assert (config.good, config.bad, config.degrade) == (["good"], ["bad"], "none")
    assert not config.freeze_encoders and config.ema == 0
    assert (config.vgg_layers, config.vgg_distance) == (None, "l1")
    assert config.folder == Path("data/runs/patches")


def test_what_may_change_on_resume_are_settings() -> None:
    assert TrainConfig.model_fields.keys() > MAY_CHANGE


def test_a_run_is_repeated_from_its_config(tmp_path: Path) -> None:
    flags = [
        "--manifest",
        "a.parquet",
        "--batch-size",
        "8",
        "--good",
        "sharp",
        "clean",
        "--ema",
        "0.9",
    ]
    config, _ = main.flags.parse(flags)
    recorded = json.loads(config.model_dump_json()) | {"weights": {}, "manifest_identity": "x"}
    (path := tmp_path / "config.json").write_text(json.dumps(recorded), "utf-8-sig")
    assert main.flags.parse(["--config", str(path)])[0] == config
    again, _ = main.flags.parse(["--config", str(path), "--batch-size", "4", "--good", "fine"])
    assert again == config.model_copy(update={"batch_size": 4, "good": ["fine"]})


TOML = 'manifest = "a.parquet"\nbatch-size = 8\ngood = ["sharp", "clean"]\nema = 0.9\n'


def test_options_may_be_written_by_hand(tmp_path: Path) -> None:
    (path := tmp_path / "mine.toml").write_text(TOML)
    config, _ = main.flags.parse(["--config", str(path)])
    assert (config.manifest, config.batch_size, config.ema) == (Path("a.parquet"), 8, 0.9)
    assert config.good == ["sharp", "clean"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("batch-sise = 4", "mine.toml: unknown option batch_sise; did you mean batch_size?"),
        ("batch-size = 1", "--batch-size 1: input should be greater than or equal to 2"),
        ("batch-size: 4", "mine.toml: neither TOML nor JSON"),
        ("[1, 2", "mine.toml: neither TOML nor JSON"),
        ("{}", "--manifest is required"),
        (None, "mine.toml: cannot be read (No such file or directory)"),
        ("manifest = '\udce4'", "mine.toml: line 1, byte 13 of the file (0xe4) is not UTF-8"),
        ("\0", "mine.toml: line 1, byte 1 of the file (0x00) is not text"),
    ],
)
def test_mistakes_in_a_file_of_options_are_one_line(
    content: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "mine.toml").write_bytes(os.fsencode(content))
    manifest = [] if content == "{}" else ["--manifest", "a.parquet"]
    assert main([*manifest, "--config", str(tmp_path / "mine.toml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize("module", ["trainer.config", "trainer.run", "trainer.data.degradation"])
def test_flags_are_read_without_pytorch(module: str) -> None:
    code = f"import sys, {module}; print({{'torch', 'cv2', 'open_clip'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")
