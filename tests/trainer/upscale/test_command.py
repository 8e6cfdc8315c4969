"""The command: inputs and results, formats, passes, existing files, mistakes, a kill."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms
from torch import Tensor

from lasr.errors import UserError
from lasr.pictures.find import find_pictures
from lasr.pictures.read import Picture, read_picture, read_rgb
from lasr.pictures.write import result_paths
from tests.support import icc, processes
from tests.support.weights import load_sr
from trainer.models.rrdb import RRDB, untrained_rrdb
from trainer.models.save import save_network
from trainer.sheets import bicubic
from trainer.upscale.__main__ import main
from trainer.upscale.config import UpscaleConfig
from trainer.upscale.engines import make_engine
from trainer.upscale.picture import Target, Upscaling, target, upscale_picture
from trainer.upscale.tiles import Tiling, upscale

COLOUR = (180, 60, 60)


@pytest.fixture
def small(photographs: Path) -> Image.Image:
    with Image.open(photographs / "coffee.png") as image:
        return image.convert("RGB").resize((40, 30))


def arguments(weights: Path, out: Path, *inputs: object, **flags: object) -> list[str]:
    pairs = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return [*map(str, inputs), "--weights", str(weights), "--out", str(out), *pairs]


def settings(**flags: Any) -> UpscaleConfig:
    return UpscaleConfig(inputs=["a"], weights="w", out=Path("out"), **flags)


def test_the_command_upscales_files_folders_and_globs(
    weights: Path, small: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = tmp_path / "in" / "größe 2" / "tief"
    deep.mkdir(parents=True)
    small.save(tmp_path / "in" / "small one.png")
    small.save(deep / "small one.png")
    small.save(tmp_path / "in" / "größe 2" / "日本.webp")
    small.convert("L").save(tmp_path / "grau.jpg")
    out = tmp_path / "out"
    argv = arguments(weights, out, tmp_path / "in", tmp_path / "gr*.jpg")
    assert main(argv) == 0
    assert "upscaled: 4 of 4, x4" in capsys.readouterr().out
    names = ["grau.png", "größe 2/tief/small one.png", "größe 2/日本.png", "small one.png"]
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.*")) == names
    assert read_picture(out / "grau.png").planes.shape == (120, 160, 1)
    enlarged = read_rgb(out / "small one.png")
    smooth = bicubic(read_rgb(tmp_path / "in" / "small one.png")[None], 4)[0]
    inner = (enlarged - smooth)[:, 16:-16, 16:-16]
    assert inner.abs().mean() < 0.03  # an untrained start interpolates
    assert main(argv) == 0
    assert "upscaled: 0 of 4, 4 existed already" in capsys.readouterr().out


def test_two_passes_give_sixteen_times(weights: Path, small: Image.Image, tmp_path: Path) -> None:
    small.save(tmp_path / "a.png")
    assert main(arguments(weights, tmp_path / "x4", tmp_path / "a.png", tile=16)) == 0
    assert main(arguments(weights, tmp_path / "x16", tmp_path / "a.png", passes=2)) == 0
    once, twice = (read_rgb(tmp_path / x / "a.png") for x in ("x4", "x16"))
    assert twice.shape == (3, 480, 640)
    again = upscale(load_sr(str(weights)), once)
    assert (twice - again).abs().max() < 0.02  # but for the rounding to 8 bit in between


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_between_two_passes_nothing_is_rounded_to_8_bit(tmp_path: Path, dtype: type) -> None:
    """Against the same in one go, in floats; rounding in between moves a quarter of the pixels."""

    def linear(x: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(x, scale_factor=4, mode="bilinear")

    largest = np.iinfo(dtype).max
    ramp = np.linspace(0, 0.2 * largest, 12 * 12 * 3).reshape(12, 12, 3).astype(dtype)
    result = tmp_path / "a.png"
    upscaling = Upscaling(linear, 4, Tiling(), settings(passes=2))
    upscale_picture(upscaling, Picture(ramp), result, "test")
    x = torch.from_numpy(ramp / largest).permute(2, 0, 1)[None]
    expected = (linear(linear(x))[0].permute(1, 2, 0) * largest).round().numpy()
    found = read_picture(result).pixels
    assert found.dtype == dtype and np.abs(found - expected).max() <= 1
    assert (found != expected).mean() < (0.01 if dtype == np.uint8 else 0.5)


@pytest.mark.parametrize(("kind", "dtype"), [("jpg", np.uint8), ("webp", np.uint8),
                                             ("tiff", np.uint16)])  # fmt: skip
def test_other_formats(weights: Path, tmp_path: Path, kind: str, dtype: type) -> None:
    ramp = np.linspace(0, 65_535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert main(arguments(weights, tmp_path / "out", tmp_path / "a.png", format=kind)) == 0
    got = read_picture(tmp_path / "out" / f"a.{kind}").pixels
    assert got.shape[:2] == (128, 128) and got.dtype == dtype
    assert main(arguments(weights, tmp_path / "out", tmp_path / "a.png", format=kind)) == 0


def test_results_inherit_metadata_and_strip_leaves_it_out(
    weights: Path, small: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture on its side in Adobe RGB, with a maker: upright, in sRGB, by the same maker."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Orientation] = "Maker", 6
    profile = icc.rgb(icc.ADOBE, 563 / 256, "wide")
    picture = Image.new("RGB", small.size, COLOUR)
    picture.save(tmp_path / "a.png", exif=exif, icc_profile=profile, dpi=(300, 300))
    out = tmp_path / "out"
    argv = arguments(weights, out, tmp_path / "a.png")
    assert main(argv) == 0
    with Image.open(out / "a.png") as image:
        assert image.size == (120, 160) and image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        tags = image.getexif()
        assert tags[ExifTags.Base.Make] == "Maker" and tags[ExifTags.Base.Orientation] == 1
        written = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        assert ImageCms.getProfileDescription(written).strip() == "sRGB"
    expected = icc.to_srgb(np.array(COLOUR) / 255, icc.ADOBE, 563 / 256)
    enlarged = read_picture(out / "a.png").pixels / 255
    assert np.abs(enlarged[8:-8, 8:-8].mean(axis=(0, 1)) - expected).max() < 0.01
    assert main([*argv, "--strip"]) == 1  # the result is another one
    assert main([*argv, "--strip", "--overwrite"]) == 0
    with Image.open(out / "a.png") as image:
        assert ExifTags.Base.Make not in image.getexif() and "dpi" not in image.info
    capsys.readouterr()
    assert (
        main([*arguments(weights, tmp_path / "x", tmp_path / "a.png"), "--max-pixels", "99"]) == 1
    )
    assert (
        "40x30: more than 99 pixels; raise the limit with --max-pixels" in capsys.readouterr().err
    )


@pytest.mark.parametrize(("flags", "expected"), [
    ({}, Target(1, 2560, 1920)),
    ({"passes": 2}, Target(2, 10_240, 7680)),
    ({"scale": 2.5}, Target(1, 1600, 1200)),
    ({"scale": 4}, Target(1, 2560, 1920)),
    ({"scale": 4.001}, Target(2, 2561, 1920)),
    ({"scale": 16}, Target(2, 10_240, 7680)),
    ({"scale": 1 / 3}, Target(1, 213, 160)),
    ({"scale": 0.0001}, Target(1, 1, 1)),
    ({"scale": 2, "passes": 2}, Target(2, 1280, 960)),
    ({"size": "3840x2160"}, Target(2, 2880, 2160)),  # fits inside, as high as is allowed
    ({"size": "800x9999"}, Target(1, 800, 600)),
    ({"size": "320x100"}, Target(1, 133, 100)),
])  # fmt: skip
def test_sizes(flags: dict[str, Any], expected: Target) -> None:
    assert target(640, 480, 4, settings(**flags)) == expected


@pytest.mark.parametrize(("flags", "message"), [
    ({"scale": 4.5, "passes": 1}, "--scale asks for 4.5 times .* --passes 1 .* gives 4; .* 2"),
    ({"scale": 64, "passes": 2}, "use --passes 3"),
    ({"size": "64000x48000"}, "--size asks for 100 times the size: 3 passes .* give 64"),
])  # fmt: skip
def test_sizes_that_are_too_much(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        target(640, 480, 4, settings(**flags))


def test_a_size_with_metadata_suffix_and_short_flags(
    weights: Path, small: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On its side, with EXIF, XMP, resolution and a profile: all fit the size that results."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Orientation] = "Maker", 6
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifImageWidth] = 40
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:ImageWidth="40" dc:title="t"/></x:xmpmeta>'
    profile = icc.rgb(icc.ADOBE, 563 / 256, "wide")
    plain = {"exif": exif, "icc_profile": profile, "dpi": (300, 300), "xmp": xmp}
    small.save(tmp_path / "a.jpg", quality=95, **plain)
    common = ["--weights", str(weights), "-i", str(tmp_path / "a.jpg")]
    for flags, size in ((["--scale", "2.5"], (75, 100)), (["--size", "90x90"], (68, 90))):
        argv = [*common, "-o", str(tmp_path / flags[0]), *flags, "--suffix", "_big"]
        assert main(argv) == 0
        for kind in ("png", "jpg", "tiff", "webp"):
            path = tmp_path / flags[0] / f"a_big.{kind}"
            assert main([*argv, "--format", kind]) == 0
            with Image.open(path) as image:
                assert image.size == size
                tags = image.getexif()
                assert tags[ExifTags.Base.Make] == "Maker"
                assert tags.get(ExifTags.Base.Orientation, 1) == 1
                inner = tags.get_ifd(ExifTags.IFD.Exif)
                assert inner.get(ExifTags.Base.ExifImageWidth, size[0]) == size[0]
                known = read_picture(path).metadata
                assert known.profile and f'ImageWidth="{size[0]}"'.encode() in (known.xmp or b"")
                if kind != "webp":
                    assert known.dpi == pytest.approx((300, 300), abs=0.1)
    capsys.readouterr()
    assert main(argv) == 0 and "1 existed already, inside 90x90" in capsys.readouterr().out
    assert main([*argv, "--colour-fix"]) == 1  # a result of other options
    assert "from other weights, options or picture" in capsys.readouterr().err
    assert main([*argv[:-2], "--scale", "2", "--suffix", "a/b"]) == 2
    assert "a suffix is part of a name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, np.uint16), (2, np.uint8), (3, np.uint8), (4, np.uint16)]
)
def test_everything_together_in_every_depth(
    weights: Path, tmp_path: Path, channels: int, dtype: type
) -> None:
    """Small tiles, two passes, a size, colours, alpha, wrapped: as in one go with large tiles."""
    y, x = np.mgrid[0:24, 0:20]
    waves = [0.5 + 0.4 * np.sin(2 * np.pi * (x / 20 + n / 3 + y / 24)) for n in range(channels)]
    most = np.iinfo(dtype).max
    pixels = np.rint(np.stack(waves, axis=2) * most).astype(dtype)
    colours = pixels[..., : 1 if channels < 3 else 3]
    alpha = pixels[..., -1] if channels in (2, 4) else None
    picture = Picture(np.broadcast_to(colours, (24, 20, 3)), alpha, channels < 3)
    engine = make_engine(load_sr(str(weights)), torch.device("cpu"))
    results = []
    for tile in (512, 40):
        flags = {"scale": 6.5, "colour_fix": True, "wrap": True, "alpha": "lanczos"}
        upscaling = Upscaling(engine, 4, Tiling(tile, 24, wrap=True), settings(**flags))
        upscale_picture(upscaling, picture, tmp_path / f"{tile}.png", "LA-SR test")
        results.append(read_picture(tmp_path / f"{tile}.png").planes.astype(float) / most)
    assert results[0].shape == (156, 130, channels)
    assert np.abs(results[0] - results[1]).max() <= 1.5 / most + 1e-4
    # A network that interpolates gives back what it was given, beyond all borders, too.
    y, x = ((np.mgrid[0:156, 0:130] + 0.5) / 6.5) - 0.5
    for n in range(channels):
        wave = 0.5 + 0.4 * np.sin(2 * np.pi * (x / 20 + n / 3 + y / 24))
        assert np.abs(results[0][..., n] - wave).max() < 0.03


def test_colour_fix_undoes_a_shift_of_the_network(photographs: Path, tmp_path: Path) -> None:
    def darker(x: Tensor) -> Tensor:
        return 0.85 * torch.nn.functional.interpolate(x, scale_factor=4, mode="bicubic")

    with Image.open(photographs / "coffee.png") as image:
        pixels = np.asarray(image.convert("RGB").crop((100, 100, 180, 160)))
    shifts = {}
    for fix in (False, True):
        upscaling = Upscaling(darker, 4, Tiling(), settings(scale=2.5, colour_fix=fix))
        upscale_picture(upscaling, Picture(pixels), tmp_path / f"{fix}.png", "LA-SR test")
        result = read_picture(tmp_path / f"{fix}.png").pixels
        assert result.shape == (150, 200, 3)
        shifts[fix] = np.abs(result.mean(axis=(0, 1)) - pixels.mean(axis=(0, 1))).max()
    assert shifts[False] > 10 and shifts[True] < 0.5


def test_alpha_by_lanczos_leaves_no_fringe(weights: Path, tmp_path: Path) -> None:
    """Orange on transparent black, as in test_tiles: every visible pixel is orange."""
    y, x = np.mgrid[0:48, 0:48]
    inside = np.clip(16.5 - np.hypot(x - 24, y - 24), 0, 1)
    sprite = np.zeros((48, 48, 4), np.uint8)
    sprite[inside > 0] = [255, 128, 0, 0]
    sprite[..., 3] = (255 * inside).round()
    Image.fromarray(sprite).save(tmp_path / "a.png")
    argv = arguments(weights, tmp_path / "out", tmp_path / "a.png", alpha="lanczos", scale=3)
    assert main(argv) == 0
    got = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    expected = Image.fromarray(sprite[..., 3].astype(np.float32)).resize(
        (144, 144), Image.Resampling.LANCZOS
    )
    assert np.abs(got[..., 3] - np.asarray(expected).clip(0, 255)).max() <= 1
    assert np.abs(got[got[..., 3] > 8][:, :3].astype(int) - [255, 128, 0]).max() <= 8


def test_a_dry_run_measures_and_writes_nothing(
    weights: Path, small: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        small.save(tmp_path / f"{name}.png")
    argv = arguments(weights, tmp_path / "out", tmp_path / "a.png", size="90x90")
    assert main(argv) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    capsys.readouterr()
    dry = [*argv, "-i", str(tmp_path / "b.png"), "--dry-run", "--tile", "20", "--overlap", "4"]
    assert main(dry) == 0
    text = capsys.readouterr().out
    for expected in (
        "pictures: 1 to upscale, 1 exist already\n",
        "inside 90x90, png, in ", "from 40x30 to 90x68 pixels\n",
        "4 tiles of at most 20 pixels with 4 around", "measured on a tile of 25x25",
        "memory:   about 0.",
    ):  # fmt: skip
        assert expected in text, text
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "c.png").write_bytes(b"no")
    assert main([*dry, "-i", str(tmp_path / "c.png")]) == 1
    assert "1 of 3 pictures would fail: " in capsys.readouterr().err


def test_same_names_are_told_apart_or_refused(tmp_path: Path, small: Image.Image) -> None:
    for name in ("a/x.png", "a/x.jpg", "b/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        small.save(tmp_path / name)
    names = result_paths(find_pictures([tmp_path / "a"]), Path("out"), "png").values()
    assert sorted(map(str, names)) == ["out/x.jpg.png", "out/x.png.png"]
    both = find_pictures([tmp_path])
    assert len(set(result_paths(both, Path("out"), "png").values())) == 3
    files = find_pictures([tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"])
    with pytest.raises(UserError, match="would both become"):
        result_paths(files, Path("out"), "png")
    listed = tmp_path / "list.txt"
    listed.write_text(f"{tmp_path / 'a' / 'x.png'}\n\n{tmp_path / 'a' / 'x.png'}\n")
    assert len(find_pictures([listed])) == 1


def test_nothing_is_overwritten_unless_asked(
    weights: Path, small: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small.save(tmp_path / "a.png")
    argv = arguments(weights, tmp_path / "out", tmp_path / "a.png")
    assert main(argv) == 0
    (tmp_path / "more").mkdir()
    os.link(tmp_path / "out" / "a.png", tmp_path / "more" / "a.png")  # a result as input, itself
    own = arguments(weights, tmp_path / "out", tmp_path / "more")
    before = (tmp_path / "out" / "a.png").read_bytes()
    assert main(own) == 1 and main([*own, "--overwrite"]) == 1
    assert "would overwrite an input" in capsys.readouterr().err
    assert (tmp_path / "out" / "a.png").read_bytes() == before
    other = save_network(untrained_rrdb(8, 1, 32, seed=1), tmp_path / "other")[0]
    changed = arguments(other, tmp_path / "out", tmp_path / "a.png")
    assert main(changed) == 1 and "from other weights, options" in capsys.readouterr().err
    assert main([*changed, "--overwrite"]) == 0
    small.rotate(90).save(tmp_path / "a.png")  # another picture under the same name
    assert main(changed) == 1


def test_mistakes_get_one_line_and_stop_no_other_picture(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (20, 20), "green").save(tmp_path / "fine.png")
    shutil.copy(tmp_path / "fine.png", tmp_path / "in")
    Image.new("RGBA", (20, 20)).save(tmp_path / "in" / "alpha.png")
    (tmp_path / "in" / "broken.png").write_bytes(b"no")
    assert main(arguments(weights, tmp_path / "out", tmp_path / "in", format="jpg")) == 1
    text = capsys.readouterr()
    assert "broken.png: not a readable picture" in text.err and "1 of 3" in text.out
    assert "alpha.png: the picture has transparency" in text.err and text.err.count("error:") == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["fine.jpg"]
    assert main(arguments(weights, tmp_path / "out", tmp_path / "missing.png")) == 1
    assert main(arguments(Path("nonsense"), tmp_path / "x", tmp_path / "fine.png")) == 1
    assert "known sr weights; give a path, or one of tiny-rrdb" in capsys.readouterr().err
    network = RRDB(8, 1, 8)
    with torch.no_grad():
        network.conv_last.get_parameter("bias").fill_(float("nan"))
    nan = save_network(network, tmp_path / "nan")[0]
    assert main(arguments(nan, tmp_path / "out2", tmp_path / "fine.png")) == 1
    assert "fine.png: the network's output is not finite" in capsys.readouterr().err
    assert not list((tmp_path / "out2").glob("*"))


def test_killed_halfway_nothing_half_written_is_left(
    weights: Path, small: Image.Image, tmp_path: Path
) -> None:
    small.resize((700, 700)).save(tmp_path / "a.png")
    argv = arguments(weights, tmp_path / "out", tmp_path / "a.png", tile=32, overlap=0)
    process = processes.context().Process(target=main, args=(argv,))
    process.start()
    half = tmp_path / "out" / ".a.png.tmp"
    while not (half.exists() and half.stat().st_size > 1000) and process.is_alive():
        time.sleep(0.01)
    assert process.pid is not None and process.is_alive()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".a.png.tmp"]


@pytest.mark.timeout(100)
def test_a_named_pipe_is_named_and_stops_no_other_picture(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (20, 20), "green").save(tmp_path / "in" / "fine.png")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    assert main(arguments(weights, tmp_path / "out", tmp_path / "in")) == 1
    assert "pipe.png: not a regular file" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["fine.png"]


def test_a_wrong_input_is_answered_without_loading_pytorch(weights: Path, tmp_path: Path) -> None:
    argv = arguments(weights, tmp_path / "out", tmp_path / "missing.png")
    code = (
        "import sys; from trainer.upscale.__main__ import run; "
        "from trainer.upscale.config import UpscaleConfig; from lasr.errors import UserError\n"
        f"config = UpscaleConfig(inputs={argv[:1]}, weights={str(weights)!r}, out='out')\n"
        "try: run(config)\n"
        "except UserError as error: assert 'no such folder' in str(error)\n"
        "else: raise AssertionError\n"
        "assert 'trainer.upscale.run' not in sys.modules\n"
        "assert 'trainer.upscale.engines' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
