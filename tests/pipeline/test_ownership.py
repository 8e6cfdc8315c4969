"""An output never takes the place of something that a build or a run did not write itself."""

import json
import os
import shutil
from pathlib import Path

import pytest

from lasr.errors import UserError
from pipeline.config import BuildConfig
from tests.conftest import run_stages
from trainer import plan as check
from trainer.config import TrainConfig


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def world(photographs: Path, tmp_path: Path) -> Path:
    """A user's folder: photographs with a thesis among them, and files around them."""
    (tmp_path / "photos").mkdir()
    shutil.copy(photographs / "coffee.png", tmp_path / "photos")
    (tmp_path / "photos" / "thesis.odt").write_text("precious")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.odt").write_text("precious")
    (tmp_path / "notes.txt").write_text("precious")
    (tmp_path / "link.parquet").symlink_to(tmp_path / "full")
    (tmp_path / "worked.work").mkdir()
    (tmp_path / "worked.work" / "thesis.odt").write_text("precious")
    (tmp_path / "beside").mkdir()
    for name in ("mine.images.parquet", "mine.duplicates.parquet", "mine.card.md"):
        (tmp_path / "beside" / name).write_text("precious")
    return tmp_path


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("photos", "is or contains the photographs"),
        (".", "does not name a manifest"),
        ("", "does not name a manifest"),
        ("photos/out.parquet", "is inside"),
        ("full", "holds thesis.odt, which no build wrote"),
        ("notes.txt", "is a file"),
        ("link.parquet", "is a link"),
        ("worked.parquet", "holds thesis.odt"),
        ("beside/mine.parquet", "mine.images.parquet: is a file that this project did not write"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_builds_refuse_what_is_not_theirs(
    world: Path, monkeypatch: pytest.MonkeyPatch, out: str, message: str, dry_run: bool
) -> None:
    monkeypatch.chdir(world)
    before = contents(world)
    config = BuildConfig(images=["photos"], out=out, profile="offline", k=1, dry_run=dry_run)
    with pytest.raises(UserError, match=message):
        run_stages(config)
    assert contents(world) == before and (world / "link.parquet").is_symlink()


def test_a_build_replaces_its_own(world: Path) -> None:
    config = BuildConfig(
        images=[str(world / "photos")], out=world / "out.parquet", profile="offline", k=1
    )
    assert len(run_stages(config)) == 1
    (part,) = (world / "out.parquet").iterdir()
    part.write_bytes(part.read_bytes()[:100])  # damaged, and still ours
    assert run_stages(config.model_copy(update={"k": 2}))


@pytest.mark.parametrize("name", ["README.md", "model.safetensors", "config.json"])
@pytest.mark.parametrize("content", ["{}", "[]", "precious"])
def test_runs_refuse_foreign_folders(
    manifest: Path, tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text(content)
    config = TrainConfig(manifest=manifest, out=tmp_path / "mine", profile="offline", batch_size=2)
    with pytest.raises(UserError, match="choose another") as refused:
        check.describe(config)
    assert "remove" not in str(refused.value)
    assert contents(tmp_path / "mine") == {name: content.encode()}


@pytest.mark.parametrize("out", ["", ".", "part"])
def test_runs_need_a_folder_of_their_own(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = manifest / "run" if out == "part" else Path(out)
    config = TrainConfig(manifest=manifest, out=folder, profile="offline", batch_size=2)
    with pytest.raises(UserError):
        check.describe(config)
    assert not os.listdir(tmp_path)


def test_a_run_knows_its_own_folder(manifest: Path, tmp_path: Path) -> None:
    settings = {"manifest_identity": "0", "weights": {}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    config = TrainConfig(manifest=manifest, out=tmp_path, profile="offline", batch_size=2)
    assert "folder:" in check.describe(config)
