"""What earlier versions wrote still opens, resumes and trains.

`builds/0.1.0` is the work folder of a build of one made-up photograph by version 0.1.0 (commit
cfdef31): `BuildConfig(images=["photos"], out="patches.parquet", profile="offline", k=1)`, whose
estimator was `colour-attenuation`.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lasr.errors import UserError
from pipeline.config import BuildConfig
from pipeline.stages import measure, select
from schemas.digest import check_parquet
from schemas.manifest import METADATA_KEY, PATCH_SIZE, open_manifest
from tests.conftest import run_stages
from trainer import checkpoint
from trainer.config import TrainConfig

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


def config(out: str = "patches.parquet") -> BuildConfig:
    return BuildConfig(
        images=["photos"], out=out, profile="test", k=1, depth="colour-attenuation",
        far_texture=0,
    )  # fmt: skip


@pytest.fixture
def same_selection(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Selection and measures as if unchanged since: only then can finished parts be used."""

    def fingerprint_inputs(config: select.SelectConfig, maps: str) -> tuple[object, ...]:
        separation = [config.separation("lr"), config.separation("hr")]
        least = config.least_texture("hr")
        return 3, maps, config.k, "depth", separation, least, None, PATCH_SIZE

    monkeypatch.setattr(select, "fingerprint_inputs", fingerprint_inputs)
    monkeypatch.setattr(measure, "fingerprint_inputs", lambda: ())


def test_a_build_of_version_0_1_0_opens_and_the_next_one_selects_again(project: Path) -> None:
    """Its strategy `depth` took the first of equally far patches; now the choice is random."""
    before = pq.read_table(open_manifest("patches.parquet").files[0])
    assert before.num_rows == 2
    assert len(run_stages(config())) == 1
    (part,) = open_manifest("patches.parquet").files
    assert pq.read_table(part).num_rows == 2
    assert run_stages(config()) == [] and open_manifest("patches.parquet").files == (part,)


@pytest.mark.usefixtures("same_selection")
def test_a_build_of_version_0_1_0_is_complete(project: Path) -> None:
    """Its part had no digest: it is checked and written again with one, its photograph not."""
    before = open_manifest("patches.parquet")
    old = pq.read_table(before.files[0])
    identity, size = before.identity, before.files[0].stat().st_size
    states = repr([(f"{PART}.parquet", size)])
    former = hashlib.sha256(states.encode()).hexdigest()[:12]
    assert before.former_identity == former
    assert run_stages(config()) == []  # no photograph is read again
    after = open_manifest("patches.parquet")
    (part,) = after.files
    assert part.stem == f"part-{check_parquet(part)[:32]}"  # type: ignore[index]
    assert pq.read_table(part).equals(old, check_metadata=True)
    assert after.identity != identity and after.former_identity == former
    work = [name for name in os.listdir("patches.work") if name.startswith("part-")]
    assert sorted(work) == [f"{part.stem}.images.parquet", part.name]
    assert run_stages(config()) == [] and open_manifest("patches.parquet").files == (part,)


@pytest.mark.usefixtures("same_selection")
@pytest.mark.parametrize("column", ["caption", "words", "image", "patch_id", "role"])
def test_damage_in_a_part_of_version_0_1_0_is_noticed(
    project: Path, column: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = project / "patches.work" / f"{PART}.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    if column == "image":
        content = rows[0]["image"]["bytes"]
        rows[0]["image"]["bytes"] = content[:99] + bytes([content[99] ^ 1]) + content[100:]
    elif column == "words":
        rows[0]["words"][3] = "wards"
    else:
        rows[0][column] = {"role": "hr"}.get(column, rows[0][column].replace("a", "b", 1))
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    assert len(run_stages(config())) == 1
    assert f"{PART}: damaged (row 0 contradicts itself); its photographs are done" in caplog.text
    assert pq.read_table(open_manifest("patches.parquet").files[0]).num_rows == table.num_rows
    found = pq.read_table(open_manifest("patches.parquet").files[0]).to_pylist()[0][column]
    assert found == pq.read_table(BUILDS / "0.1.0/patches.work" / path.name).to_pylist()[0][column]


def test_the_same_photograph_gives_the_rows_of_version_0_1_0(project: Path) -> None:
    run_stages(config("new.parquet"))
    new, old = (open_manifest(project / name).files for name in ("new.parquet", "patches.parquet"))
    before, after = pq.read_table(old[0]).to_pylist(), pq.read_table(new[0]).to_pylist()
    added = set(after[0]) - set(before[0])
    assert added == {"sharpness_56", "colour_a", "colour_b"}
    after = [{name: row[name] for name in row if name not in added} for row in after]
    for row in (*before, *after):
        # A processor of another kind may sum in another order.
        row["word_scores"] = [round(score, 4) for score in row["word_scores"]]
    assert before == after


@pytest.mark.usefixtures("same_selection")
def test_cached_features_of_version_0_1_0_are_used(project: Path) -> None:
    (project / "patches.work" / f"{PART}.images.parquet").unlink()
    features = next((project / "patches.work" / "kept").rglob("*.safetensors"))
    before = features.stat()
    assert len(run_stages(config())) == 1
    assert features.stat().st_mtime_ns == before.st_mtime_ns  # not computed, so not written


@pytest.mark.usefixtures("same_selection")
def test_a_run_resumes_whose_config_has_the_former_identity(project: Path) -> None:
    """Before its manifest was written again with digests, and after; another one is refused."""
    run = TrainConfig(manifest=Path("patches.parquet"), out=Path("run"), profile="test")
    weights = {"sr_init": "a@1", "clip": "b@1", "vgg": "c@1"}
    former = open_manifest("patches.parquet").former_identity
    checkpoint.claim_folder(run, former, weights)
    for _ in range(2):
        manifest = open_manifest("patches.parquet")
        checkpoint.check_settings(run, manifest.identity, weights, manifest.former_identity)
        run_stages(config())
    checkpoint.claim_folder(run, manifest.identity, weights, manifest.former_identity)
    settings = json.loads((project / "run" / "config.json").read_text())
    assert settings["manifest_identity"] == manifest.identity != former
    with pytest.raises(
        UserError, match=f"holds a run with manifest_identity = {manifest.identity}"
    ):
        checkpoint.check_settings(run, "0" * 32, weights, "0" * 12)
