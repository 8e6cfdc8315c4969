"""A run on a manifest in object storage is the run on a local copy, killed and resumed or not."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import trainer.run
from lasr.__main__ import main as lasr
from lasr.storage.config import _access
from lasr.storage.filesystem import file_system
from tests.support import processes
from tests.support.stored import ADDRESS, in_groups, on_s3
from tests.support.upstream import save_clip
from trainer.models.rrdb import untrained_rrdb
from trainer.models.save import save_network

STEPS = 8


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_clip(folder / "clip")
    save_network(untrained_rrdb(8, 1, 8), folder, "sr")
    return folder


def arguments(manifest: object, models: Path, out: Path) -> list[str]:
    text = (
        f"--manifest {manifest} --out {out} --profile test --clip {models}/clip --batch-size 4"
        f" --sr-init {models}/sr.safetensors --steps {STEPS} --log-every 1 --checkpoint-every 3"
        f" --sample-every 100 --workers 2 --lr 1e-3 --cache {out.parent}/cache"
        " --storage-timeout 300"
    )
    return text.split()


def train(argv: list[str], environment: dict[str, str]) -> None:
    """`lasr train` in a process of its own."""
    torch.set_num_threads(1)
    os.environ |= environment
    sys.exit(trainer.run.main(argv))


def lines(folder: Path) -> list[dict[str, Any]]:
    """stats.jsonl without what a clock wrote."""
    path = folder / "stats.jsonl"
    text = path.read_text().splitlines() if path.exists() else []
    clock = ("seconds_per_step", "waiting_for_data", "waiting_for_device")
    return [{k: v for k, v in json.loads(t).items() if k not in clock} for t in text]


def test_killed_on_s3_and_resumed_on_either_side_it_equals_a_local_run(
    manifest: Path, models: Path, tmp_path: Path
) -> None:
    """The server fails at times, and a part of the cache is damaged between two attempts."""
    local = in_groups(manifest, tmp_path / "local.parquet")
    assert trainer.run.main(arguments(local, models, tmp_path / "alone")) == 0
    remote = arguments(ADDRESS, models, tmp_path / "killed")
    folder = tmp_path / "killed"
    with on_s3(local, tmp_path) as s3:
        s3.fault = lambda number, path: 503 if number % 4 == 0 else 0
        process = processes.context().Process(target=train, args=(remote, s3.environment))
        process.start()
        while not (folder / "checkpoint.pt").exists():
            assert process.is_alive(), "ended before it could be killed"
            time.sleep(0.005)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL and len(lines(folder)) < STEPS
        for file in list((tmp_path / "cache").glob("*.range"))[::2]:
            file.write_bytes(file.read_bytes()[:-1])
        # Five steps on the disk, the others on S3 again.
        on_disk = arguments(local, models, folder)
        on_disk[on_disk.index("--steps") + 1] = "5"
        assert trainer.run.main(on_disk) == 0
        assert trainer.run.main(remote) == 0
    assert lines(folder)[-1]["step"] == STEPS
    assert lines(folder) == lines(tmp_path / "alone")
    first, second = (
        safetensors.torch.load_file(path / "model.safetensors")
        for path in (tmp_path / "alone", folder)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("command", ["compare", "degradations", "train --dry-run", "doctor"])
def test_other_commands_that_take_a_manifest(
    command: str, manifest: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.chdir(tmp_path)
    _access.cache_clear()
    with on_s3(manifest, tmp_path):
        argv = {
            "compare": ["--weights", f"{models}/sr.safetensors", "--out", "sheet.png"],
            "degradations": ["--out", "sheet.png", "--patches", "2", "--draws", "1"],
            "train --dry-run": arguments(ADDRESS, models, tmp_path / "run")[2:],
            "doctor": ["--program", "trainer", "--profile", "test"],
        }[command]
        status = lasr([*command.split(), "--manifest", ADDRESS, *argv])
    out = capsys.readouterr().out
    if command == "doctor":
        assert f"✓ manifest: {ADDRESS}: 2 parts" in out and "a request takes" in out
        return
    assert status == 0
    assert (tmp_path / "sheet.png").exists() or ADDRESS in out
    cache = tmp_path / ("cache" if "train" in command else "caches/la-sr/ranges")
    assert len(list(cache.glob("*.range"))) >= 2


@pytest.mark.parametrize(
    "command",
    [
        f"convert {ADDRESS} --to folder --out folder",
        f"push dataset {ADDRESS} a/b",
    ],
)
def test_commands_that_need_a_disk_say_so(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert lasr(command.split()) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {ADDRESS}: this command reads manifests from a local disk")
    assert f"aws s3 sync {ADDRESS} data/patches.parquet" in error


def test_mistakes_are_one_line(
    manifest: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def error_of(address: str, *more: str) -> str:
        argv = [*arguments(address, models, tmp_path / "run"), "--storage-timeout", "0.1", *more]
        assert trainer.run.main(argv) == 1
        (error,) = [e for e in capsys.readouterr().err.splitlines() if e.startswith("error: ")]
        return error

    with on_s3(manifest, tmp_path) as s3:
        assert "there is no bucket 'other'; check its name" in error_of(
            "s3://other/patches.parquet"
        )
        assert "s3://bucket/x: no manifest there" in error_of("s3://bucket/x")
        assert "holds no *.parquet part" in error_of("s3://bucket/data")
        s3.fault = lambda number, path: 403
        assert "ACCESS_DENIED" in (text := error_of(ADDRESS)) and "ask for the right" in text
        s3.fault = lambda number, path: 503
        assert "503" in (text := error_of(ADDRESS)) and "run the same command again" in text
    assert "adlfs" in (text := error_of("az://x/y")) and "install the package" in text
    assert "use s3://, gs://, hf://" in error_of("nosuch://x/y")
    assert "unset HF_HUB_OFFLINE" in error_of("hf://datasets/owner/name")
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "a.jpg").write_bytes(b"x")
    assert "holds a.jpg and no cache" in error_of(ADDRESS, "--cache", str(foreign))
    file_system.cache_clear()
