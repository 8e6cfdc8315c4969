"""What earlier versions wrote still opens, resumes and trains.

`builds/0.1.0` is the work folder of a build of one made-up photograph by version 0.1.0 (commit
cfdef31): `BuildConfig(images=["photos"], out="patches.parquet", profile="offline", k=1)`.
"""

import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.config import BuildConfig
from schemas.manifest import METADATA_KEY, open_manifest
from tests.conftest import run_stages

BUILDS = Path(__file__).with_name("builds")
PART = "part-4e45dab465349c84"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder as version 0.1.0 left it, the photograph's time of change included."""
    shutil.copytree(BUILDS / "0.1.0", tmp_path, dirs_exist_ok=True)
    work = tmp_path / "patches.work"
    (tmp_path / "patches.parquet").mkdir()
    shutil.copy(work / f"{PART}.parquet", tmp_path / "patches.parquet")
    about = json.loads(pq.read_schema(work / f"{PART}.images.parquet").metadata[METADATA_KEY])
    ((_, modified),) = about["states"].values()
    os.utime(tmp_path / "photos" / "a.jpg", ns=(modified, modified))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_build_of_version_0_1_0_is_complete(project: Path) -> None:
    config = BuildConfig(images=["photos"], out="patches.parquet", profile="offline", k=1)
    assert run_stages(config) == []  # nothing is made again
    (part,) = (project / "patches.parquet").iterdir()
    assert part.name == f"{PART}.parquet"
    assert part.read_bytes() == (BUILDS / "0.1.0" / "patches.work" / part.name).read_bytes()


def test_the_same_photograph_gives_the_rows_of_version_0_1_0(project: Path) -> None:
    config = BuildConfig(images=["photos"], out="new.parquet", profile="offline", k=1)
    run_stages(config)
    new, old = (open_manifest(project / name).files for name in ("new.parquet", "patches.parquet"))
    assert new[0].name == old[0].name
    before, after = pq.read_table(old[0]).to_pylist(), pq.read_table(new[0]).to_pylist()
    for row in (*before, *after):
        # A processor of another kind may sum in another order.
        row["word_scores"] = [round(score, 4) for score in row["word_scores"]]
    assert before == after


def test_cached_features_of_version_0_1_0_are_used(project: Path) -> None:
    (project / "patches.work" / f"{PART}.images.parquet").unlink()
    features = next((project / "patches.work" / "kept").rglob("*.safetensors"))
    before = features.stat()
    config = BuildConfig(images=["photos"], out="patches.parquet", profile="offline", k=1)
    assert len(run_stages(config)) == 1
    assert features.stat().st_mtime_ns == before.st_mtime_ns  # not computed, so not written
