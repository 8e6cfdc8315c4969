"""The profiles `default` and `paper` from an exported folder to a picture, without a network.

The folder holds small networks of the upstream classes in the upstream formats, under the names
that `fetch` gives them: all that is missing here are the trained numbers.
"""

from pathlib import Path

import duckdb
import pytest
from PIL import Image

import lasr.weights.__main__
import pipeline.run
import trainer.run
import trainer.upscale.__main__
from lasr.weights.locate import PROFILES, TABLE, Profile
from pipeline.config import BuildConfig
from tests.conftest import run_stages
from tests.support.upstream import (
    SMALL,
    any_content,
    expect,
    save_clip,
    save_depth_anything,
    save_depthfm,
    save_vae,
    save_vgg19,
)
from trainer.evaluate.pyiqa_backend import offline
from trainer.models.rrdb import untrained_rrdb
from trainer.models.save import save_network

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that `python -m lasr.weights fetch` would bring for the two profiles."""
    folder = tmp_path_factory.mktemp("weights")

    def place(name: str, number: int = 0) -> Path:
        path = folder / name / TABLE[name].files[number].name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    save_depth_anything(place("depth-anything-v2-small").parent)
    save_depthfm(place("depthfm-v1"), SMALL)
    save_vae(place("sd15-vae").parent)
    save_clip(place("clip-vit-l-14").parent)
    save_vgg19(place("vgg19"))
    _, pth = save_network(untrained_rrdb(8, 1, 8), place("rrdb-psnr-x4").parent)
    pth.rename(place("rrdb-psnr-x4"))
    return folder


@pytest.mark.parametrize("profile", ["default", "paper"])
def test_a_profile_runs_from_photographs_to_a_picture(
    profile: Profile, folder: Path, photographs: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("LASR_WEIGHTS", str(folder))
    any_content(monkeypatch, *PROFILES[profile].values(), "sd15-vae")
    for name in PROFILES[profile].values():  # small networks stand in for the published ones
        expect(monkeypatch, name)
    monkeypatch.chdir(tmp_path)
    carried = str(tmp_path / "carried")
    assert lasr.weights.__main__.main(["export", carried, profile]) == 0
    with offline(tmp_path) as network:
        build_train_and_enlarge(profile, carried, photographs, tmp_path, monkeypatch, capsys)
    # A client of another test in this process may still ask for its server on this machine.
    assert "127.0.0.1" in network.refused or not network.refused
    assert Image.open("enlarged/coffee.png").size == (1024, 920)


def build_train_and_enlarge(
    profile: Profile, carried: str, photographs: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """All commands, with the weights of one folder that came from elsewhere."""
    names = ("coffee.png", "chelsea.png")
    small = tmp_path / "photographs"
    small.mkdir()
    for name in names:  # DepthFM at full size is slow on a CPU, however small the network
        Image.open(photographs / name).resize((256, 230)).save(small / name)
    build = BuildConfig(images=[str(small)], profile=profile, k=2)
    dry = ["--images", str(small), "--profile", profile, "--dry-run", "--weights-dir", carried]
    assert pipeline.run.main(dry) == 0
    run_stages(build)
    models = duckdb.sql(
        "SELECT DISTINCT depth_model, caption_model FROM 'data/patches.parquet/*.parquet'"
    ).fetchall()
    assert len(models) == 1
    assert models[0][0].startswith(PROFILES[profile]["depth"] + "@")
    assert models[0][1].startswith("clip-vit-l-14@") and len(models[0][1]) == 14 + 12
    monkeypatch.delenv("LASR_WEIGHTS")
    train = [
        "--weights-dir",
        carried,
        "--manifest",
        "data/patches.parquet",
        "--profile",
        profile,
        "--steps",
        "1",
    ]
    assert trainer.run.main([*train, "--batch-size", "2"]) == 0
    assert "random weights" not in capsys.readouterr().err
    upscale = ["photographs/coffee.png", "--weights", "data/runs/patches/model.safetensors"]
    assert trainer.upscale.__main__.main([*upscale, "--out", "enlarged"]) == 0
