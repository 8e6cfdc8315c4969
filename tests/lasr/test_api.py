"""The Python API: the examples of docs/api.md, with small networks, and what they leave out."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import lasr
from lasr.errors import UserError

ROOT = Path(__file__).parents[2]
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/api.md").read_text(), re.S | re.M)


def test_the_examples_of_the_page_run_one_after_the_other(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").symlink_to(photographs)
    monkeypatch.chdir(tmp_path)
    assert len(EXAMPLES) == 4
    found: dict[str, Any] = {}
    for example in EXAMPLES:
        assert len(example.splitlines()) <= 10
        # With the small networks of tests; test_tour.py runs the profile `offline`.
        exec(example.replace('"offline"', '"test"'), found)
    assert found["summary"].status == {"ok": 7} and found["summary"].patches["lr"] == 28
    assert [path.name for path in found["weights"]] == ["model.safetensors", "model.pth"]
    assert found["large"].size == (320, 240) and found["pixels"].dtype == np.uint8
    again = lasr.build_patches(["photos"], "patches.parquet", profile="test", k=4)
    assert again == found["summary"]


def test_names_are_imported_when_they_are_used() -> None:
    code = """
import sys, lasr
assert set(lasr.__all__) <= set(dir(lasr)) and lasr.__version__
assert not {"torch", "numpy", "pipeline", "trainer"} & sys.modules.keys()
lasr.build_patches, lasr.open_manifest, lasr.Upscaler, lasr.train
assert not {"torch", "prefect", "duckdb"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    with pytest.raises(AttributeError, match="module 'lasr' has no attribute 'upscale'"):
        _ = lasr.upscale


def test_a_build_with_prefects_parameters_is_refused(photographs: Path, tmp_path: Path) -> None:
    for parameters in ({"runner": "ray"}, {"dry_run": True}):
        with pytest.raises(UserError, match="use `lasr build`"):
            lasr.build_patches([photographs], tmp_path / "patches.parquet", **parameters)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        lasr.build_patches(["nowhere"], tmp_path / "patches.parquet", profile="test")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def upscale() -> Any:
    return lasr.Upscaler("tiny-rrdb", device="cpu", tile=32, overlap=8)


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (20, 30, 2), (20, 30, 3), (20, 30, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_arrays_keep_their_kind(upscale: Any, shape: tuple[int, ...], dtype: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype)
    large = upscale(pixels)
    assert large.shape == (80, 120, *shape[2:]) and large.dtype == dtype
    assert abs(float(large.mean()) / float(pixels.mean()) - 1) < 0.1


@pytest.mark.parametrize(
    ("mode", "result"),
    [("L", "L"), ("LA", "LA"), ("RGB", "RGB"), ("RGBA", "RGBA"), ("I;16", "I;16"),
     ("P", "RGB"), ("CMYK", "RGB"), ("1", "RGB")],
)  # fmt: skip
def test_images_keep_their_kind(upscale: Any, mode: str, result: str) -> None:
    image = Image.new(mode, (30, 20), 1 if mode in ("1", "P") else None)
    large = upscale(image)
    assert isinstance(large, Image.Image) and (large.mode, large.size) == (result, (120, 80))


def test_other_arrays_and_weights_are_refused(upscale: Any) -> None:
    with pytest.raises(ValueError, match="expected h x w x 1 to 4, uint8 or uint16"):
        upscale(np.zeros((20, 30, 3), np.float32))
    with pytest.raises(UserError, match="no-such-network"):
        lasr.Upscaler("no-such-network")
