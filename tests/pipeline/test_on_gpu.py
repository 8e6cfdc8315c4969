"""The pipeline's networks on a GPU against the CPU, and builds that end in the same rows."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from lasr.weights.locate import locate
from pipeline.config import BuildConfig
from pipeline.stages.captions import DICTIONARY, Captioner, read_dictionary
from tests.conftest import run_stages
from tests.support.upstream import SMALL, save_clip, save_depth_anything, save_depthfm, save_vae
from tests.support.weights import load_depth

pytestmark = pytest.mark.gpu
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return folder


@pytest.fixture(scope="module")
def depth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("depth")
    save_depth_anything(folder)
    return folder


def photo(height: int = 90, width: int = 120) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
def test_words_are_the_cpus(clip: Path, photographs: Path, precision: Any) -> None:
    words = read_dictionary(DICTIONARY)
    pictures = [np.asarray(Image.open(p).convert("RGB")) for p in sorted(photographs.iterdir())]
    patches = [p[y : y + s, :s] for p in pictures for s in (56, 224) for y in (0, 60)]
    located = locate(str(clip), "clip")
    cpu, gpu = Captioner(located, words, CPU), Captioner(located, words, GPU, precision)
    features = [c.features([c.prepare(p) for p in patches[:16]]) for c in (cpu, gpu)]
    assert (features[0] * features[1]).sum(1).min() > (0.9999 if "32" in precision else 0.998)
    pairs = list(zip(cpu.caption(patches), gpu.caption(patches), strict=True))
    same = [len(set(a.words) & set(b.words)) for a, b in pairs]
    assert min(same) >= 21 and np.mean(same) >= 23
    if precision == "float32":  # only words whose cosines are equal to rounding change places
        assert max(np.abs(np.subtract(a.scores, b.scores)).max() for a, b in pairs) < 1e-5


@pytest.mark.parametrize(("precision", "bound"), [("float32", 1e-4), ("bfloat16", 1e-2)])
def test_distances_are_the_cpus(depth: Path, precision: Any, bound: float) -> None:
    for size in ((90, 120), (120, 90), (70, 300)):
        cpu, gpu = load_depth(str(depth), CPU), load_depth(str(depth), GPU)
        if precision != "float32":
            from pipeline.stages.depth import load_depth as load

            gpu = load(locate(str(depth), "depth"), GPU, 0, precision)
        expected, found = (one.distance(photo(*size)) for one in (cpu, gpu))
        assert np.abs(found - expected).mean() <= bound


def test_depthfm_is_the_cpus(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    save_depthfm(tmp_path / "depthfm.ckpt", SMALL)
    save_vae(tmp_path / "vae")
    cpu, gpu = (load_depth(str(tmp_path / "depthfm.ckpt"), device) for device in (CPU, GPU))
    expected, found = (one.distance(photo()) for one in (cpu, gpu))
    assert np.abs(found - expected).mean() <= 1e-2


def build(album: Path, out: Path, **changes: Any) -> BuildConfig:
    plain: dict[str, Any] = {
        "images": [str(album)], "out": str(out), "profile": "test", "k": 2, "device": "cuda",
    }  # fmt: skip
    return BuildConfig(**(plain | changes))


def rows(out: Path) -> list[dict[str, Any]]:
    return sorted(pq.read_table(out).to_pylist(), key=lambda row: str(row["patch_id"]))


def test_rows_do_not_depend_on_how_the_work_is_cut(
    photographs: Path, depth: Path, clip: Path, tmp_path: Path
) -> None:
    """To the last bit, in bfloat16, whichever photographs share a call."""
    found = []
    for size in (1, 3, 100):
        out = tmp_path / str(size) / "patches.parquet"
        run_stages(build(photographs, out, depth=str(depth), clip=str(clip), shard_size=size))
        found.append(rows(out))
    assert found[0] == found[1] == found[2]


def test_precision_decides_which_parts_are_finished(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "patches.parquet"
    assert len(run_stages(build(photographs, out, precision="float32"))) == 1
    assert run_stages(build(photographs, out, precision="float32", device="cpu")) == []
    assert len(run_stages(build(photographs, out))) == 1  # auto: bfloat16
    meta = pq.read_schema(next(out.iterdir())).metadata
    assert b'"precision": "bfloat16"' in b"".join(meta.values())
