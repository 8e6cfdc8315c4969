"""A build in shares (docker/shares.sh): lists, one build for each, and one manifest of all."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.build.plan import plan_build, prepare
from pipeline.build.publish import finish
from pipeline.config import BuildConfig
from schemas.manifest import open_manifest
from tests.conftest import run_stages
from tests.support.servers import ROOT
from tests.system.test_docs import parse

pytestmark = pytest.mark.slow

NAMES = ["china.jpg", "coffee.png", "rocket.jpg", "sub/again.png"]


@pytest.fixture
def album(photographs: Path, tmp_path: Path) -> Path:
    """Three photographs, a copy of one of them, and a file that is no photograph."""
    folder = tmp_path / "my photos"
    (folder / "sub").mkdir(parents=True)
    for name in NAMES[:3]:
        shutil.copy2(photographs / name, folder / name)
    shutil.copy2(photographs / "coffee.png", folder / "sub/again.png")
    (folder / "notes.csv").write_text("none", encoding="utf-8", newline="\n")
    return folder


@pytest.fixture
def script(tmp_path: Path) -> Any:
    """Run a step of the script; returns how it called `lasr`, which does nothing here."""
    stub, calls = tmp_path / "bin/lasr", tmp_path / "calls"
    stub.parent.mkdir()
    lines = ["#!/bin/bash", f'printf "%s\\n" "$PWD" "$PREFECT_HOME" "$@" >"{calls}"']
    stub.write_text("\n".join(lines), encoding="utf-8", newline="\n")
    stub.chmod(0o755)

    def run(*step: str) -> list[str]:
        calls.unlink(missing_ok=True)
        path = f"{stub.parent}{os.pathsep}{os.environ['PATH']}"
        env = os.environ | {"PATH": path, "PREFECT_HOME": "shared"}
        command = ["bash", str(ROOT / "docker/shares.sh"), *step]
        subprocess.run(command, check=True, env=env, cwd=stub.parent)
        return calls.read_text(encoding="utf-8").splitlines() if calls.exists() else []

    return run


def config(images: list[str], out: Path) -> BuildConfig:
    return BuildConfig(images=images, out=str(out), profile="test", k=2, shard_size=2)


def contents(out: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rows = ds.dataset([str(file) for file in open_manifest(out).files]).to_table()
    catalogue = pq.read_table(out.parent / "images.parquet")
    return rows.sort_by("patch_id").to_pylist(), catalogue.sort_by("path").to_pylist()


def test_shares_become_the_manifest_of_one_build(
    album: Path, tmp_path: Path, script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, shares = tmp_path / "data/patches.parquet", tmp_path / "data/patches.shares"
    script("cut", str(album), str(out), "2")
    lists = [(shares / f"share-0000{n}.txt").read_text(encoding="utf-8") for n in (0, 1)]
    assert [text.splitlines() for text in lists] == [NAMES[::2], NAMES[1::2]]
    monkeypatch.chdir(album)
    for number in (0, 1):
        called = script("build", str(album), str(out), str(number), "--k", "2")
        listed, result = shares / f"share-0000{number}.txt", shares / f"share-0000{number}.parquet"
        assert called[0] == str(album) and called[1] != "shared" and not Path(called[1]).exists()
        assert called[2:] == ["build", "--images", str(listed), "--out", str(result), "--k", "2"]
        run_stages(config([str(listed)], result))
    called = script("combine", str(album), str(out), "--k", "2")
    assert called[2:] == ["build", "--images", str(album), "--out", str(out), "--k", "2"]
    build = plan_build(prepare(config([str(album)], out)))
    assert build.to_do == 0 and len(build.plan.finished) == 2
    finish(build, [])
    one = tmp_path / "one/patches.parquet"
    run_stages(config([str(album)], one))
    assert contents(out) == contents(one)
    assert {row["status"] for row in contents(out)[1]} == {"ok", "duplicate"}


def test_lists_stay_and_an_empty_share_is_nothing_to_do(
    album: Path, tmp_path: Path, script: Any
) -> None:
    out, shares = tmp_path / "data/patches.parquet", tmp_path / "data/patches.shares"
    script("cut", str(album), str(out), "8")
    before = {file.name: file.read_bytes() for file in shares.iterdir()}
    assert len(before) == 9 and script("build", str(album), str(out), "7") == []
    (album / "new.jpg").write_bytes(b"")
    script("cut", str(album), str(out), "2")
    assert {file.name: file.read_bytes() for file in shares.iterdir()} == before


def test_what_the_examples_call_exists() -> None:
    ray = yaml.safe_load((ROOT / "docker/rayjob.yaml").read_text(encoding="utf-8"))["spec"]
    parse(ray["entrypoint"].removeprefix("lasr "))
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"\nray=={ray['rayClusterSpec']['rayVersion']}\n" in pinned
    job = yaml.safe_load((ROOT / "docker/job.yaml").read_text(encoding="utf-8"))["spec"]
    called = job["template"]["spec"]["containers"][0]["args"][0]
    shell = (ROOT / "docker/slurm.sh").read_text(encoding="utf-8")
    steps = (ROOT / "docker/shares.sh").read_text(encoding="utf-8")
    used = set(re.findall(r"docker/shares\.sh (\w+)", called + shell))
    assert used == {"cut", "build", "combine"} == set(re.findall(r"(?m)^(\w+)\) ", steps))
    assert job["completions"] >= job["parallelism"]
