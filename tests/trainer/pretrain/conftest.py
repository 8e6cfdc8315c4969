"""Small photographs and small runs for the tests of pretraining."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainer.pretrain.config import PretrainConfig

Settings = Callable[..., PretrainConfig]


@pytest.fixture(scope="package")
def pictures(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photographs of 84x92 pixels."""
    folder = tmp_path_factory.mktemp("small") / "pictures"
    folder.mkdir()
    for number, path in enumerate(sorted(photographs.iterdir())[:6]):
        image = Image.open(path).convert("RGB")
        side = 40 + 3 * number
        image.crop((side, side, side + 84, side + 92)).save(folder / f"{path.stem}.png")
    return folder


@pytest.fixture
def settings(pictures: Path, tmp_path: Path) -> Settings:
    """Settings of a run of a tenth of a second; its folder is `tmp_path / "run"`."""

    def make(**changes: Any) -> PretrainConfig:
        plain: dict[str, Any] = {
            "images": [pictures], "out": tmp_path / "run", "features": 8, "blocks": 1, "growth": 8,
            "steps": 8, "batch_size": 2, "patch": 10, "warmup": 2, "lr": 1e-3, "ema": 0.9,
            "log_every": 1, "sample_every": 4, "checkpoint_every": 4, "validate_every": 4,
            "workers": 2, "device": "cpu",
        }  # fmt: skip
        return PretrainConfig(**(plain | changes))

    return make
