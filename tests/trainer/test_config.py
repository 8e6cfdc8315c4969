"""The settings of a run: the paper's defaults, and flags that answer without loading a network."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import ROOT
from trainer.config import MAY_CHANGE, TrainConfig


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


@pytest.mark.parametrize("module", ["trainer.config", "trainer.run", "trainer.data.degradation"])
def test_flags_are_read_without_pytorch(module: str) -> None:
    code = f"import sys, {module}; print({{'torch', 'cv2', 'open_clip'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")
