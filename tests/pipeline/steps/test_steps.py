"""`lasr depth`, `patches` and `caption`: the numbers of a build, bad files, what is replaced."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.dataset as ds
import pytest
from PIL import Image

import pipeline.steps.depth
from lasr.pictures.read import read_picture
from lasr.weights.registry import PROFILES
from pipeline.config import BuildConfig
from pipeline.report.config import COLOURS
from pipeline.stages.captions import DICTIONARY, read_dictionary
from pipeline.stages.select import box_mean
from pipeline.steps import caption, depth, patches
from pipeline.steps.drawing import in_colour, outlined
from tests.conftest import run_stages
from tests.support.upstream import save_depth_anything

PROFILE = ["--profile", "test", "--device", "cpu"]
Row = dict[str, Any]


def rows_of(manifest: Path) -> list[Row]:
    found: list[Row] = ds.dataset(manifest).to_table().to_pylist()
    return found


def few_words(folder: Path, start: int = 0) -> list[str]:
    """A dictionary of 30 words, of which CLIP's embeddings are soon computed."""
    path = folder / f"from-{start}.words"
    path.write_text("\n".join(read_dictionary(DICTIONARY)[start : start + 30]))
    return ["--dictionary", str(path)]


def test_a_map_holds_the_distances_of_the_manifest(
    photographs: Path,
    manifest: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    argv = [str(photographs), "--out", str(tmp_path / "maps"), *PROFILE]
    assert depth.main(argv) == 0
    maps = {}
    for row in rows_of(manifest):
        stem = Path(row["image_path"]).stem
        if stem not in maps:
            packed = cv2.imread(str(tmp_path / f"maps/{stem}.distance.png"), cv2.IMREAD_UNCHANGED)
            assert packed.dtype == np.uint16
            assert packed.shape == (row["image_height"], row["image_width"])
            shown = read_picture(tmp_path / f"maps/{stem}.colour.png").pixels
            assert np.abs(shown.astype(int) - in_colour(packed / 65_535)).max() <= 8
            maps[stem] = box_mean(packed.astype(np.float32) / 65_535)
        half = row["size"] // 2
        measured = maps[stem][row["y"] + half, row["x"] + half]
        assert measured == pytest.approx(row["distance"], abs=1.5 / 65_535)
    assert len(maps) == 7 and "maps: 7 of 7, in" in capsys.readouterr().out

    def never(*arguments: object) -> None:
        raise AssertionError("an estimator was loaded, and every map exists")

    monkeypatch.setattr(pipeline.steps.depth, "load_depth", never)
    assert depth.main(argv) == 0
    assert "0 of 7, 7 existed already" in capsys.readouterr().out
    assert depth.main([*argv, "--depth", "colour-attenuation"]) == 1
    assert "from another estimator or picture; choose" in capsys.readouterr().err


def test_a_networks_map_is_the_one_that_a_build_caches(photographs: Path, tmp_path: Path) -> None:
    """Rounded to 16 bit at the network's size, then enlarged, as for the patches of a build."""
    save_depth_anything(tmp_path / "network")
    (tmp_path / "in").mkdir()
    shutil.copy(photographs / "china.jpg", tmp_path / "in" / "a.jpg")
    network, out = str(tmp_path / "network"), tmp_path / "m.parquet"
    images = [str(tmp_path / "in")]
    run_stages(
        BuildConfig(images=images, out=out, profile="test", device="cpu", depth=network, k=3)
    )
    argv = [*images, "--depth", network, *PROFILE]
    assert depth.main([*argv, "--out", str(tmp_path / "maps")]) == 0
    packed = cv2.imread(str(tmp_path / "maps/a.distance.png"), cv2.IMREAD_UNCHANGED)
    smooth = box_mean(packed.astype(np.float32) / 65_535)
    rows = rows_of(out)
    assert len(rows) == 6
    for row in rows:
        half = row["size"] // 2
        measured = smooth[row["y"] + half, row["x"] + half]
        assert measured == pytest.approx(row["distance"], abs=1.5 / 65_535)
    chosen = patches.chooser(depth.DepthMapsConfig(
        pictures=images, out=tmp_path, profile="test", device="cpu", depth=network
    ).build.model_copy(update={"k": 3}))  # fmt: skip
    (found,) = pipeline.steps.depth.find_with_results(
        depth.DepthMapsConfig(pictures=images, out=tmp_path / "x"), tmp_path / "x", []
    )
    photograph = pipeline.stages.images.load(found, 224)
    assert [vars(patch) for patch in chosen(photograph)] == [
        {name: row[name] for name in ("role", "x", "y", "size", "distance", "rank", "texture")}
        for row in rows
    ]


def test_patches_are_drawn_where_the_manifest_has_them(
    photographs: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(photographs / "china.jpg"), "--out", str(tmp_path), "--k", "4", *PROFILE]
    assert patches.main(argv) == 0
    assert "4 lr (yellow), 4 hr (blue)" in capsys.readouterr().out
    rows = [row for row in rows_of(manifest) if row["image_path"] == "china.jpg"]
    pixels = read_picture(photographs / "china.jpg").pixels
    drawn = read_picture(tmp_path / "china.patches.jpg").pixels
    assert np.abs(drawn.astype(int) - outlined(pixels, rows)).mean() < 3  # JPEG
    assert patches.main(argv) == 0  # replaces its own


def test_outlines_lie_inside_their_patches_and_small_ones_on_top() -> None:
    grey = np.full((900, 1000, 3), 128, np.uint8)
    far = {"role": "lr", "x": 100, "y": 60, "size": 56}
    near = {"role": "hr", "x": 0, "y": 0, "size": 224}
    drawn = outlined(grey, [far, near])
    changed = (drawn != 128).any(axis=2)
    assert (
        not changed[224:].any()
        and not changed[:, 224:].any()
        and not changed[130:200, 10:200].any()
    )
    colours = {role: tuple(bytes.fromhex(colour[1:])) for role, colour in COLOURS.items()}
    assert tuple(drawn[61, 120]) == colours["lr"] and tuple(drawn[60, 120]) == (0, 0, 0)
    assert tuple(drawn[1, 20]) == colours["hr"] and tuple(drawn[0, 20]) == (0, 0, 0)
    assert tuple(drawn[115, 155]) == (0, 0, 0) and tuple(drawn[114, 154]) == colours["lr"]


def test_words_of_patches_are_those_of_the_manifest(
    photographs: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(photographs), "--patches", "--k", "4", "--format", "json", *PROFILE]
    assert caption.main(argv) == 0
    entries = json.loads(capsys.readouterr().out)
    expected = rows_of(manifest)
    got = [patch | entry for entry in entries for patch in entry.pop("patches")]
    assert len(got) == len(expected)
    by_id = {(row["image_id"], row["role"], row["x"], row["y"]): row for row in expected}
    for one in got:
        row = by_id[one["image_id"], one["role"], one["x"], one["y"]]
        for name in (
            "image_path",
            "words",
            "word_scores",
            "caption",
            "distance",
            "texture",
            "rank",
        ):
            assert one[name] == row[name], name


def test_words_of_a_picture_are_those_of_the_patch_that_it_is(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(manifest)[:6]
    for number, row in enumerate(rows):
        (tmp_path / f"{number}.png").write_bytes(row["image"]["bytes"])
    assert caption.main([str(tmp_path), "--format", "json", *PROFILE]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["image_path"] for entry in entries] == [f"{n}.png" for n in range(6)]
    for entry, row in zip(entries, rows, strict=True):
        assert (entry["words"], entry["word_scores"]) == (row["words"], row["word_scores"])
    assert caption.main([str(tmp_path / "0.png"), *PROFILE, *few_words(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "0.png" and len(lines) == 7
    scores = [[float(score) for score in re.findall(r"-?\d\.\d{3}", line)] for line in lines[1:]]
    in_order = [score for column in zip(*scores, strict=True) for score in column]
    assert len(in_order) == 24 and in_order == sorted(in_order, reverse=True)


def test_bad_files_are_named_and_the_others_done(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(photographs / "coffee.png", folder / "deep")
    (folder / "bad.jpg").write_bytes(b"no")
    Image.new("RGB", (30, 20)).save(folder / "small.png")
    glob = [str(folder / "*.*"), str(folder / "deep"), *PROFILE]
    assert depth.main([*glob, "--out", str(tmp_path / "maps")]) == 1
    said = capsys.readouterr()
    assert "maps: 2 of 3" in said.out
    assert "error: 1 of 3 pictures failed: " in said.err and "/in/bad.jpg: " in said.err
    assert len(list((tmp_path / "maps").iterdir())) == 4
    assert patches.main([*glob, "--out", str(tmp_path / "drawn")]) == 1
    said = capsys.readouterr()
    assert "2 of 3 pictures failed" in said.err and "30x20: a patch needs 224" in said.err
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["coffee.patches.jpg"]
    assert caption.main([*glob, "--format", "json", *few_words(tmp_path)]) == 1
    said = capsys.readouterr()
    assert len(json.loads(said.out)) == 2 and "1 of 3 pictures failed" in said.err


def test_sidecars_are_replaced_unless_they_were_edited(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    plain = [str(photographs / "chelsea.png"), "--out", str(out), *PROFILE]
    argv = [*plain, *few_words(tmp_path)]
    for _ in range(2):
        assert caption.main(argv) == 0
        (entry,) = json.loads((out / "captions.json").read_text())["pictures"]
        assert (out / "chelsea.txt").read_text() == f"{entry['caption']}\n"
        assert entry["caption"] == ", ".join(entry["words"]) and len(entry["words"]) == 24
    assert caption.main([*plain, *few_words(tmp_path, 50)]) == 0
    assert (out / "chelsea.txt").read_text() != f"{entry['caption']}\n"
    (out / "chelsea.txt").write_text("mine\n")
    assert caption.main(argv) == 1
    assert "chelsea.txt: was not written by LA-SR, or edited since" in capsys.readouterr().err
    assert (out / "chelsea.txt").read_text() == "mine\n"
    assert caption.main([*argv, "--patches"]) == 2


def test_every_profile_has_the_models_that_are_asked_for() -> None:
    for profile, names in PROFILES.items():
        config = depth.DepthMapsConfig(pictures=["a"], out=Path("out"), profile=profile)
        assert config.build.depth_name == names["depth"]
        assert config.build.clip_name == names["clip"]
        drawn = patches.PatchesConfig(pictures=["a"], out=Path("out"), profile=profile)
        for role in ("lr", "hr"):
            assert drawn.build.least_texture(role) == BuildConfig(  # type: ignore[arg-type]
                images=["a"], profile=profile
            ).least_texture(role)  # type: ignore[arg-type]
